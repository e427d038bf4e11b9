"""`edgeagent`: argv in, exit code out.

Every command imports what it needs when it runs, so that `edgeagent --version` stays instant and
`edgeagent run` never loads what belongs to the operator's machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from edgeagent import __version__
from edgeagent.errors import EX_SOFTWARE, EX_USAGE, EdgeAgentError
from ota.errors import UpdateError

Handler = Callable[[argparse.Namespace], int]


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=128, help="most tokens to generate")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=40, help="0 is off")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument("--stop", action="append", default=[], help="end before this text")
    parser.add_argument(
        "--zero-skip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="skip multiplications by zero; never changes the answer",
    )


def _local_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        help="model directory, Hugging Face directory or GGUF file; default: the bundled model",
    )
    parser.add_argument("--tokenizer", type=Path, help="of a source that has none")
    parser.add_argument("--threads", type=int, help="default: the number of cores, at most 4")
    parser.add_argument("--kernel", help="force a kernel variant, as EDGEAGENT_KERNEL does")
    parser.add_argument(
        "--kv-bits", type=int, default=16, choices=(4, 8, 16, 32), help="of the KV cache"
    )
    parser.add_argument(
        "--kv-group-size", type=int, default=64, help="numbers that share a scale in 8 and 4 bits"
    )
    parser.add_argument("--verbose", action="store_true", help="print timings to stderr")


def _node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="the daemon's TOML file")
    parser.add_argument("--mqtt", metavar="HOST[:PORT]", help="broker; overrides the config")
    parser.add_argument("--node", help="node name; overrides the config")


def _add_local(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser("generate", help="continue a prompt, in this process")
    what = generate.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to continue")
    what.add_argument("--user", help="one user message, through the chat template")
    _sampling(generate)
    _local_model(generate)
    generate.add_argument("--json", action="store_true")
    generate.set_defaults(handler=_lazy("edgeagent.cli_local", "generate"))
    chat = commands.add_parser("chat", help="talk to a model in this process")
    _sampling(chat)
    _local_model(chat)
    chat.add_argument("--system", help="system message")
    chat.add_argument("--json", action="store_true", help="one JSON object a turn")
    chat.set_defaults(handler=_lazy("edgeagent.cli_local", "chat"))


def _add_remote(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="run the agent (what systemd starts)")
    run.add_argument("--config", type=Path, help="default: /etc/edgeagent/edgeagent.toml if there")
    run.set_defaults(handler=_lazy("edgeagent.cli_remote", "run"))
    ask = commands.add_parser("ask", help="ask a running agent over MQTT")
    ask.add_argument("text", nargs="?", help="the question; default: standard input")
    ask.add_argument("--prompt", help="raw text to continue instead of a question")
    ask.add_argument("--timeout", type=float, default=130.0, metavar="S", help="seconds to wait")
    _sampling(ask)
    _node(ask)
    ask.add_argument("--json", action="store_true", help="print the final message")
    ask.set_defaults(handler=_lazy("edgeagent.cli_remote", "ask"))
    status = commands.add_parser("status", help="what a running agent says of itself")
    _node(status)
    status.add_argument("--timeout", type=float, default=3.0, metavar="S")
    status.add_argument("--json", action="store_true")
    status.set_defaults(handler=_lazy("edgeagent.cli_remote", "status"))


def _add_update(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    update = commands.add_parser("update", help="models of this device: look, install, go back")
    verbs = update.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (
        ("status", "what is installed, and what is under way"),
        ("check", "look for a release now, and install it"),
        ("install", "the same, and try again what was cancelled or struck out"),
        ("cancel", "stop the update that is under way or waits; a later release is not held"),
        ("rollback", "return to the model before the active one; needs no network"),
        ("history", "what became of updates"),
        ("forgive", "let a model that failed here be tried again; status lists them"),
    ):
        parser = verbs.add_parser(verb, help=text)
        if verb == "forgive":
            parser.add_argument("model", metavar="ROOT|VERSION|all", help="which")
        _node(parser)
        parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="for an answer")
        if verb in {"check", "install"}:
            parser.add_argument(
                "--from", dest="place", type=Path, metavar="DIR", help="a repository on a medium"
            )
        if verb in {"check", "install", "rollback"}:
            parser.add_argument(
                "--wait", type=float, default=0.0, metavar="S", help="for the end, at most so long"
            )
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(handler=_lazy("edgeagent.cli_update", "update"))


def _ternarising(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantization",
        choices=("ternary", "binary", "int8", "f16"),
        help="ternary for float models; the others to compare with, no device takes them",
    )
    parser.add_argument(
        "--scheme",
        choices=("absmean", "threshold", "twn"),
        help="default: absmean; threshold where --alpha is given",
    )
    parser.add_argument(
        "--alpha",
        metavar="A",
        help="of threshold: 0.065, or attention=0.08,layers.3.ffn=0.06,..., or auto",
    )
    parser.add_argument(
        "--alpha-per", choices=("matrix", "head"), default="matrix", help="with --alpha auto"
    )
    parser.add_argument(
        "--ternary-embedding", action="store_true", help="ternarise embedding and head too"
    )
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="text to measure errors on")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write table, JSON and plot")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="PEFT LoRA to keep beside it")
    parser.add_argument(
        "--merge-adapter", type=Path, metavar="DIR", help="PEFT LoRA to merge into float masters"
    )


def _add_adapter(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adapter = commands.add_parser("adapter", help="change the LoRA adapter of a model directory")
    verbs = adapter.add_subparsers(dest="verb", required=True, metavar="VERB")
    add = verbs.add_parser("add", help="a new directory: the model with this adapter")
    add.add_argument("model", type=Path)
    add.add_argument("adapter", type=Path, help="PEFT directory")
    remove = verbs.add_parser("remove", help="a new directory: the model without its adapter")
    remove.add_argument("model", type=Path)
    for verb in (add, remove):
        verb.add_argument("target", type=Path, help="the new directory")
        verb.add_argument("--release", required=True, metavar="VERSION")
        verb.add_argument("--counter", type=int, help="default: one more than the model's")
        verb.add_argument("--json", action="store_true")
        verb.set_defaults(handler=_lazy("edgeagent.cli_models", "adapter"))


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser("inspect", help="what is in a model, and does it fit here?")
    inspect.add_argument("model", type=Path, help="directory or file, as convert reads them")
    inspect.add_argument("--context", type=int, metavar="N", help="tokens; default: the model's")
    inspect.add_argument("--tokenizer", type=Path, help="of a source that has none")
    inspect.add_argument(
        "--i2s-variant", choices=("canonical", "neon64", "rows4"), default="canonical"
    )
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(handler=_lazy("edgeagent.cli_models", "inspect"))


def _add_tools(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser("doctor", help="check this machine and say what to do")
    doctor.add_argument("--config", type=Path)
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(handler=_lazy("edgeagent.cli_tools", "doctor"))
    demo = commands.add_parser(
        "demo", help="broker, daemon, queries and an update, on this machine"
    )
    demo.add_argument("--out", type=Path, default=Path("build/demo.json"))
    demo.add_argument("--broker", choices=("auto", "mosquitto", "amqtt"), default="auto")
    demo.set_defaults(handler=_lazy("edgeagent.cli_tools", "demo"))
    convert = commands.add_parser("convert", help="a model of any format to our layout")
    convert.add_argument("source", type=Path, help="Hugging Face directory, GGUF file, ...")
    convert.add_argument("target", type=Path, help="the new directory")
    convert.add_argument("--name", required=True, help="model name, e.g. edge-tiny")
    convert.add_argument("--release", required=True, metavar="VERSION")
    convert.add_argument("--counter", type=int, required=True, help="grows with every release")
    convert.add_argument("--layout", type=int, choices=(1, 2), help="2 bit or base 3; by size")
    convert.add_argument(
        "--activation-bits", type=int, choices=(8, 16), help="in place of what the source says"
    )
    convert.add_argument("--tokenizer", type=Path, help="in place of the source's own")
    convert.add_argument(
        "--i2s-variant",
        choices=("canonical", "neon64", "rows4"),
        default="canonical",
        help="how I2_S tensors are laid out; no file says (docs/models.md)",
    )
    _ternarising(convert)
    convert.add_argument("--json", action="store_true")
    convert.set_defaults(handler=_lazy("edgeagent.cli_tools", "convert"))
    export = commands.add_parser("export", help="a model to GGUF or Hugging Face")
    export.add_argument("model", type=Path, help="a directory or file of any kind that is read")
    export.add_argument("out", type=Path, help="the GGUF file, or the new directory")
    formats = ("gguf-tq2_0", "gguf-tq1_0", "gguf-iq2_bn", "hf")
    export.add_argument("--format", choices=formats, required=True)
    export.add_argument(
        "--relu2-as-bitnet",
        action="store_true",
        help="GGUF: a ReLU² model as `bitnet`, which llama.cpp loads and computes with SiLU",
    )
    export.add_argument(
        "--tokenizer",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the tokenizer too",
    )
    export.add_argument("--json", action="store_true")
    export.set_defaults(handler=_lazy("edgeagent.cli_models", "export"))
    train = commands.add_parser("train", help="train a ternary model (needs the train extra)")
    train.add_argument("rest", nargs=argparse.REMAINDER)
    train.set_defaults(handler=_lazy("edgeagent.cli_tools", "train"))


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser("bench", help="measure speed beside the memory's roofline")
    what = bench.add_mutually_exclusive_group()
    what.add_argument(
        "--shape",
        choices=("tiny", "small", "2b4t"),
        default="small",
        help="random weights of this shape",
    )
    what.add_argument("--model", type=Path, help="a model directory instead")
    what.add_argument(
        "--kernels", action="store_true", help="single matrix products that come from memory"
    )
    bench.add_argument(
        "--formats", action="store_true", help="the model in several number formats, side by side"
    )
    bench.add_argument("--threads", type=int, help="default: the number of cores, at most 4")
    bench.add_argument(
        "--zero-act",
        type=float,
        metavar="Z",
        help="zeros at down_proj's input, as a fraction; 0: nothing is skipped; default: 0.8",
    )
    bench.add_argument("--closed-gates", type=float, metavar="G", help="default: 7/8 of Z")
    bench.add_argument("--kv-bits", type=int, metavar="B", help="bits of the KV cache")
    bench.add_argument("--kernel", help="force a kernel variant, as EDGEAGENT_KERNEL does")
    bench.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="[NAME=]COMMAND",
        help="a worker of another engine, measured in turn with ours (see bench/peers.py)",
    )
    bench.add_argument("--tokens", type=int, default=32, help="decode steps of one run")
    bench.add_argument("--prompt", type=int, default=128, help="tokens of a prefill")
    bench.add_argument("--past", type=int, default=8, help="tokens before a decode begins")
    bench.add_argument("--repeat", type=int, default=5, help="rounds; figures are medians")
    bench.add_argument(
        "--starts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure fresh processes too, warm and cold",
    )
    bench.add_argument("--bandwidth-mb", type=int, default=1024, help="of the bandwidth probe")
    bench.add_argument("--cache", type=Path, default=Path("build/bench"), help="of made models")
    bench.add_argument("--out", type=Path, help="keep the result in this file")
    bench.add_argument("--json", action="store_true")
    bench.add_argument("--verbose", action="store_true", help="say on stderr what is being done")
    bench.set_defaults(handler=_lazy("edgeagent.cli_bench", "bench"))


def _lazy(module: str, name: str) -> Handler:
    def call(args: argparse.Namespace) -> int:
        from importlib import import_module

        return int(getattr(import_module(module), name)(args))

    return call


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    parser = argparse.ArgumentParser(prog="edgeagent", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"edgeagent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_remote(commands)
    _add_update(commands)
    _add_local(commands)
    _add_tools(commands)
    _add_adapter(commands)
    _add_inspect(commands)
    _add_bench(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors are one line on stderr and a sysexits code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:  # its own parser owns everything behind the word, --help too
        from edgeagent.cli_tools import train

        return train(argparse.Namespace(rest=argv[1:]))
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as err:
        return EX_USAGE if err.code == 2 else int(err.code or 0)
    try:
        return int(args.handler(args))
    except (EdgeAgentError, UpdateError) as err:
        print(f"edgeagent: {err}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; there is nobody left to tell
        return EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main())

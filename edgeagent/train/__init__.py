"""Train the bundled ternary model from open data, on an ordinary CPU.

The pipeline, one module a step::

    corpus_stories   stories            -> texts                 \
    corpus_snips     Snips requests     -> CommandSample          |
    corpus_nlu       NLU home corpus    -> CommandSample          |-> data (batches)
    corpus_clinc     CLINC150           -> CommandSample          |
    corpus_home      sentence templates -> CommandSample         /
    tokenizer        byte-level BPE over the mix
    model            BitNet decoder, quantised in the forward pass
    loop             two-stage training with checkpoints
    evaluate         perplexity, exact match, slot F1
    export           Hugging Face directory of float masters

Only ``model``, ``loop``, ``evaluate`` and ``export`` need torch; it is an optional extra.
"""

"""Model updates: delta codec, trust, wire format (pure), `device` and `fleet` sides.

`ota` never imports `edgeagent`: the codec, the trust rules and the wire format exist once, and
both ends of an update use them.
"""

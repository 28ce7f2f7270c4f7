"""The stages of the chain, one file each: VERSION and `run(config, inputs..., context)`.

A stage sees its config node, its inputs (folders of artifacts, config nodes) and a Context, writes the files of its
artifact into `context.folder` and returns what its manifest should say, with a one-line "note" for the console.
Raise VERSION when the same config and inputs give another result. A stage imports no other stage.
"""

__all__ = ["irl", "sft", "step"]

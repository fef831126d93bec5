"""Latent long-term memory for language models.

    import mplus

    model = mplus.MPlus.from_pretrained("smol-135m")
    memory = model.new_memory()
    model.write(memory, "My dog is called Biscuit.", source="notes")
    print(model.generate(memory, [{"role": "user", "content": "What is my dog called?"}]).text)

The public names are listed in ``__init__.pyi``. Each is imported at its first use, so ``import mplus`` itself loads no
large library.
"""

import lazy_loader

from mplus.installed import refuse_other_mplus

refuse_other_mplus()

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Save, restore, cut and copy the state of modules and meta-optimizers."""

from torchopt._module_clone import module_clone, module_detach_, stop_gradient
from torchopt._module_state import ModuleState, extract_state_dict, recover_state_dict

__all__ = [
    "ModuleState",
    "extract_state_dict",
    "module_clone",
    "module_detach_",
    "recover_state_dict",
    "stop_gradient",
]

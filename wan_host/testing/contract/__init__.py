"""The contract of the hooks as test classes: a plugin's tests subclass one for each hook that it has.

    class TestPlugin(PluginContract):
        plugin = "my_publisher"

    class TestPublishing(PublisherContract):
        plugin = "my_publisher"

They call the plugin that is installed under that name, through the host's own checks. What a hook needs to be tested is a
fixture or a method to override (a model, a reference, a receiver's answer); each class says which. ``wan-host plugin test``
runs them without any of that and names what it could not test.
"""

from wan_host.testing.contract.base import Contract
from wan_host.testing.contract.host import (
    PostprocessContract,
    PublisherContract,
    ReferenceContract,
    ReportContract,
    WorkerContract,
)
from wan_host.testing.contract.lane import EnhancerContract, FrameContract, RunnerContract
from wan_host.testing.contract.plugin import CommandContract, ModelContract, PluginContract

__all__ = [
    "CONTRACTS",
    "CommandContract",
    "Contract",
    "EnhancerContract",
    "FrameContract",
    "ModelContract",
    "PluginContract",
    "PostprocessContract",
    "PublisherContract",
    "ReferenceContract",
    "ReportContract",
    "RunnerContract",
    "WorkerContract",
]

CONTRACTS: dict[str, type[Contract]] = {
    "list_models": ModelContract,
    "load_model": Contract,
    "generate": RunnerContract,
    "enhance_prompt": EnhancerContract,
    "describe_processor": FrameContract,
    "process_frames": FrameContract,
    "postprocess": PostprocessContract,
    "publish": PublisherContract,
    "fetch_reference": ReferenceContract,
    "deliver_report": ReportContract,
    "worker_started": WorkerContract,
    "worker_stopping": WorkerContract,
    "add_commands": CommandContract,
}
"""The class of every hook. ``load_model`` is tested with the hook that uses what it returns."""

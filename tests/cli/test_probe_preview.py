from gpu_agent.cli.probe_preview import preview
from gpu_agent.probe.simulated import SimulatedGpus
from gpu_agent.probe.snapshot import Sources, take
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.messages import NodeRegister


def test_the_preview_reads_as_a_registration() -> None:
    inventory = take(SimulatedGpus("2xL4-24GB", seed="a").read(0.0), Sources(), simulated=True)
    message = decode_from_node(preview(inventory, None))
    assert isinstance(message, NodeRegister)
    assert (message.simulated, len(message.hardware.gpus)) == (True, 2)

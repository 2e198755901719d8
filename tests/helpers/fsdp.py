"""FSDP2 over gloo processes, for the tests of sharded models."""

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin


FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    },
}
"""Training arguments that shard a Llama block by block."""


class ShardsOnCPU:
    """For a Trainer: accelerate shards on accelerators only; the rest works with gloo too."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = True

"""Plugin for ms-swift: the rows that GIST selects. See ms_swift.md.

swift sft --external_plugins recipes/frameworks/ms_swift_plugin.py --callbacks gist ...
"""

import json

from swift.callbacks import callbacks_map
from swift.trainers import Seq2SeqTrainer, TrainerFactory
from transformers import Trainer

from hf_gist import GISTConfig, GISTDataSelectorCallback


TARGETS = "targets.jsonl"  # a few dozen examples of the target task, in a format of swift, such as `messages`
CONFIG = GISTConfig(budget=0.05)


class GISTSeq2SeqTrainer(Seq2SeqTrainer):
    """swift's trainer with the dataloader of transformers, whose sampler a callback can replace."""

    def get_train_dataloader(self, skip_batches=0):
        """The dataloader of transformers; it skips the batches of a resumed run by itself."""
        return Trainer.get_train_dataloader(self)


def gist(args, trainer):
    """The callback, with the target rows tokenised and labelled by swift's template."""
    with open(TARGETS, encoding="utf-8") as lines:
        targets = [trainer.template.encode(json.loads(line)) for line in lines]
    return GISTDataSelectorCallback(CONFIG, target_dataset=targets)


callbacks_map["gist"] = gist
TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.GISTSeq2SeqTrainer"

"""The command lines of the five published notes, and what each of them is here.

A line of GluonCV's scripts is run as it stands: ``train.py`` and ``test.py`` take its flags. Lines
of other scripts have an equivalent, which docs/recipes.md lists. The rest sets up other software.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

ICNET, DEEPLAB, MHP, ASCEND = (
    "000-icnet-cityscapes-gluoncv.md",
    "001-deeplabv3plus-gluon.md",
    "002-multi-human-parsing.md",
    "003-icnet-pytorch-ascend.md",
)
MXNETGO = "004-mxnetgo-deeplab.md"


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        text: as the note has it.
        here: the command of this project; empty where ``text`` is one.
        adds: flags for what the note says beside its command.
    """

    note: str
    text: str
    here: str = ""
    adds: str = ""

    @property
    def script(self) -> str:
        """``train.py``, ``test.py`` or ``segserve``."""
        words = (self.here or self.text).split()
        return next(w.rsplit("/", 1)[-1] for w in words if w != "python")

    @property
    def flags(self) -> str:
        """What follows the script."""
        command = f"{self.here or self.text} {self.adds}"
        return command.split(self.script, 1)[1].strip()


_MHP_TEST = "python test.py --dataset mhp --model {} --backbone resnet50 --syncbn --ngpus"
_MHP = (
    "python train.py --dataset mhp --model {model} --backbone resnet50 --syncbn --ngpus {gpus} "
    "--checkname {model}_resnet50_mhp --lr {lr} --epochs {epochs} --base-size {base} "
    "--crop-size {crop} --workers 48 --batch-size {batch} --log-interval 1"
)


def _mhp(
    model: str, lr: str, epochs: int, crop: int, base: int = 768, gpus: int = 8, batch: int = 16
) -> str:
    return _MHP.format(
        model=model, lr=lr, epochs=epochs, crop=crop, base=base, gpus=gpus, batch=batch
    )


# Of GluonCV's scripts.
TRAININGS = (
    Line(ICNET, "python train.py --dataset citys --model icnet --backbone resnet50 --syncbn "
         "--ngpus 8 --checkname icnet_resnet50_citys --lr 0.01 --epochs 240 --base-size 2048 "
         "--crop-size 768 --workers 48"),
    Line(ICNET, "python ./scripts/segmentation/train.py --dataset citys --model psp --aux "
         "--backbone resnet101 --syncbn --ngpus 8 --checkname psp_resnet101_citys --lr 0.01 "
         "--epochs 240 --base-size 2048 --crop-size 768 --workers 48"),
    # "params: icnet_resnet50; adam": the script had the optimizer inside.
    Line(MHP, "python train.py --dataset mhp --model icnet --backbone resnet50 --syncbn --ngpus 8 "
         "--lr 0.00001 --epochs 120 --base-size 768 --crop-size 768 --workers 48 --batch-size 16 "
         "--log-interval 1", adds="--optimizer adam"),
    # "Experiment : Adam optimizer".
    Line(MHP, _mhp("psp", "0.0005", 120, 768), adds="--optimizer adam"),
    Line(MHP, _mhp("icnet", "0.0005", 120, 768), adds="--optimizer adam"),
    Line(MHP, _mhp("psp", "0.0001", 120, 768), adds="--optimizer adam"),
    Line(MHP, _mhp("icnet", "0.0001", 120, 768), adds="--optimizer adam"),
    # Debug experiments 3, 2 and 1.
    Line(MHP, _mhp("psp", "0.0005", 240, 480)),
    Line(MHP, _mhp("icnet", "0.0005", 240, 480)),
    Line(MHP, _mhp("psp", "0.001", 30, 768)),
    Line(MHP, _mhp("icnet", "0.001", 30, 768)),
    Line(MHP, _mhp("psp", "0.0005", 30, 768)),
    Line(MHP, _mhp("icnet", "0.0005", 30, 768)),
    Line(MHP, _mhp("psp", "0.001", 30, 480, base=480)),
    Line(MHP, _mhp("icnet", "0.001", 30, 480)),
    Line(MHP, _mhp("psp", "0.0005", 30, 480)),
    Line(MHP, _mhp("icnet", "0.0005", 30, 480)),
    Line(MHP, _mhp("psp", "0.001", 30, 768, gpus=1, batch=1)),
    Line(MHP, _mhp("icnet", "0.001", 30, 768, gpus=1, batch=1)),
    Line(MHP, _mhp("psp", "0.001", 15, 768, gpus=1, batch=1) + " --clip-grad 20"),
    # The first ones: no batch size, no log interval.
    Line(MHP, _mhp("psp", "0.001", 240, 768).split(" --batch-size")[0]),
    Line(MHP, _mhp("icnet", "0.001", 240, 768).split(" --batch-size")[0]),
)  # fmt: skip
SCORINGS = (
    Line(ICNET, "python test.py --dataset citys --model icnet --backbone resnet50 --syncbn "
         "--ngpus 1 --base-size 2048 --workers 48 --eval --resume "
         "./runs/citys/icnet/icnet_resnet50_citys/"),
    Line(ICNET, "python ./scripts/segmentation/test.py --model psp --backbone resnet101 --dataset "
         "citys --batch-size 8 --ngpus 8 --eval --resume /home/ubuntu/workspace/cv/GluonCV_Test/"
         "semantic_seg/training/psp_resnet101_citys_/psp_resnet101_citys_model_best.params --aux "
         "--base-size 2048 --crop-size 768"),
    Line(MHP, f"{_MHP_TEST.format('icnet')} 1 --workers 48 --eval --resume "
         "./runs/mhp/icnet/resnet50/epoch_0105_mIoU_0.3974.params"),
    # "test: multi-scale".
    Line(MHP, f"{_MHP_TEST.format('psp')} 8 --batch-size 8 --base-size 768 --workers 48 --eval "
         "--resume ./runs/mhp/psp/resnet50/epoch_0046_mIoU_0.3416.params",
         adds="--scales 0.5,0.75,1,1.25,1.5,1.75 --flip"),
    # "result: single-scale".
    Line(MHP, f"{_MHP_TEST.format('icnet')} 1 --batch-size 1 --base-size 768 --workers 48 --eval "
         "--resume ./runs/mhp/icnet/resnet50/epoch_0024_mIoU_0.3095.params"),
)  # fmt: skip

# Of others' scripts. In one order: what is trained is scored and exported after it.
_8P = "python training/train.py --recipe icnet_resnet50_citys_mixed"
_1P = f"{_8P} --ngpus 1 --batch-size 7 --lr 0.01"
_TRAINED = "--resume runs/citys/icnet_two_pass/icnet_resnet50_citys_mixed"
EQUIVALENTS = (
    Line(ICNET, "python val.py --data_dir ~/.mxnet/datasets/citys/ --data_list "
         "./data/cityscapes/val.txt --arch icnet --restore_from ./models/icnet_final.pth --gpu 8 "
         "--whole True",
         "python training/test.py --dataset citys --model icnet_fast_seg --backbone resnet50 "
         "--ngpus 8 --eval --resume weights/fast_seg/network.params"),
    Line(DEEPLAB, "python pascal_voc.py", "segserve dataset prepare pascal_voc"),
    Line(MHP, "python mhp_v1.py", "segserve dataset prepare mhpv1"),
    Line(ASCEND, "bash ./test/train_full_1p.sh --data_path=xxx", f"{_1P} --root xxx"),
    Line(ASCEND, "bash ./test/train_performance_1p.sh --data_path=xxx",
         f"{_1P} --epochs 1 --no-val --root xxx"),
    Line(ASCEND, "bash scripts/train_1p.sh", _1P),
    Line(ASCEND, "bash ./test/train_performance_8p.sh --data_path=xxx",
         f"{_8P} --epochs 5 --no-val --root xxx"),
    Line(ASCEND, "bash scripts/train_8p.sh", _8P),
    Line(ASCEND, "bash ./test/train_full_8p.sh --data_path=xxx", f"{_8P} --root xxx"),
    Line(ASCEND, "bash ./test/train_eval_8p.sh --data_path=xxx",
         f"python training/test.py --eval --ngpus 8 --root xxx {_TRAINED}"),
    Line(ASCEND, "bash scripts/eval.sh", f"python training/test.py --eval --ngpus 1 {_TRAINED}"),
    Line(ASCEND, "python3.7.5 demo.py", f"python training/test.py --ngpus 1 {_TRAINED}"),
    Line(ASCEND, "python3.7.5 pth2onnx.py",
         "segserve export --symbol "
         "runs/citys/icnet_two_pass/icnet_resnet50_citys_mixed/network-symbol.json --params "
         "runs/citys/icnet_two_pass/icnet_resnet50_citys_mixed/best.params --dataset citys"),
)  # fmt: skip

# Scripts that the notes name without a command line.
SCRIPTS = (
    Line(ICNET, "https://github.com/lxtGH/Fast_Seg",
         "python training/train.py --recipe icnet_fast_seg_citys"),
    Line(DEEPLAB, "train_multi_gpu.py",
         "python training/train.py --recipe deeplabv3plus_xception65_voc_os16"),
    Line(DEEPLAB, "MXNet finetune TrainOS=8",
         "python training/train.py --recipe deeplabv3plus_xception65_voc_os8"),
    # Its use_global_stats is --freeze-bn, which the recipe's --syncbn does not go with.
    Line(DEEPLAB, "train.py",
         "python training/train.py --dataset pascal_aug --model deeplabv3plus --output-stride 16 "
         "--freeze-bn --ngpus 1 --batch-size 6 --lr 1e-4 --weight-decay 1e-4 --head-lr-mult 1 "
         "--epochs 50 --short-size 520 --crop-size 512 --rotation 10 --finetune "
         "weights/pascal_train_aug.params"),
    Line(DEEPLAB, "evaluate.py",
         "python training/test.py --dataset pascal_voc --model deeplabv3plus --ngpus 1 "
         "--output-stride 8 --eval --resume weights/os8.params"),
    Line(MXNETGO, "deeplabv2.pascal", "python training/train.py --recipe deeplab_msra_voc"),
    Line(MXNETGO, "deeplabv2.pascal.4gpu.scale16",
         "python training/train.py --recipe deeplab_msra_voc_4gpu"),
    Line(MXNETGO, "deeplabv2.pascal.dcn", "python training/train.py --recipe deeplab_msra_dcn_voc"),
    Line(MXNETGO, "deeplabv2.cs.scale4.officiallr.full.longer",
         "python training/train.py --recipe deeplab_msra_citys"),
    Line(MXNETGO, "Deformable DeepLab, ResNet-v1-101",
         "python training/train.py --recipe deeplab_msra_dcn_citys"),
    # "in most tensorflow framework", and "in mxnet", where its 30k iterations have 8 parts.
    Line(MXNETGO, "[(3, 1e-4), (5, 1e-5), (7, 8e-6)]",
         "python training/train.py --recipe deeplab_msra_voc --optimizer adam --lr 1e-4 "
         "--epochs 28 --lr-steps 12,20 --lr-factor 0.1,0.8"),
    Line(MXNETGO, "[(4, 1e-3), (6, 1e-4)]",
         "python training/train.py --recipe deeplab_msra_voc --lr 1e-3 --epochs 24 --lr-steps 16"),
)  # fmt: skip

# Other software's: `make setup` and `make test` set this one up. The weights of the first line are
# on Google Drive, behind a page that asks; `segserve import-weights` takes the file.
SETUP = (
    (ICNET, "wget --load-cookies"),
    (DEEPLAB, "git clone https://github.com/dmlc/gluon-cv"),
    (DEEPLAB, "cd gluon-cv/scripts/datasets"),
    (MHP, "conda create --name mhp python=3.6"),
    (MHP, "source activate mhp"),
    (MHP, "pip install mxnet-cu101mkl==1.4.1"),
    (MHP, "pip install Cython"),
    (MHP, "pip install pypandoc pycocotools"),
    (MHP, "git clone https://github.com/dmlc/gluon-cv"),
    (MHP, "cd gluon-cv"),
    (MHP, "pip install -e ."),
    (MHP, "pip install html5lib googleDriveFileDownloader"),
    (MHP, "cd ~/gluoncv/scripts/dataset"),
    (ASCEND, "./A800-9010-NPU_Driver-x.x.x-X86_64- Ubuntu18.04.run"),
    (ASCEND, "./A800-9010-NPU_Firmware-<version>.run"),
    (ASCEND, "./Ascend-Toolkit-{version}-xxx-{gcc_version}.run"),
    (ASCEND, "pip3.7 install --upgrade torch-*.whl"),
    (ASCEND, "pip3.7 install --upgrade apex-*.whl"),
    (ASCEND, "pip3.7 install --upgrade torchvision==0.6.0"),
    (ASCEND, "pip install -r requirements.txt"),
)

_COMMAND = re.compile(
    r"(?:python[\d.]* [\w./]*\w\.py|bash [\w./]*\.sh|wget |pip[\d.]* install|conda create"
    r"|source activate|git clone|(?<![\w/])cd [~\w]|\./[\w.{}<>-]+(?: [\w.]+)?\.run)[\x20-\x7e]*"
)


def find_commands(text: str) -> Iterator[str]:
    """The command lines in a note, in its order, each as often as it stands there."""
    for match in _COMMAND.finditer(text):
        yield match[0].split("`")[0].split(" # ")[0].strip()

"""Package metadata, dependencies and extras. Exact tested versions are in `constraints.txt`."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """Return the version held by `megatron_v2pe/version.py`, without importing the package."""
    names: dict[str, str] = {}
    exec((HERE / "megatron_v2pe" / "version.py").read_text(encoding="utf-8"), names)
    return names["__version__"]


def read_description() -> str:
    """Return the README, or nothing in a tree that has none."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


REQUIREMENTS = [
    # The releases `scripts/check_versions.sh` was run with; README's table says which. The device shims and the
    # checkpoint code use names of Megatron-Core's own, so a new release is tried before the range grows.
    "megatron-core>=0.16.1,<0.20",
    "torch>=2.11,<2.15",
    # Megatron-Core 0.18 and later import it. pip takes those on Python 3.12 and later; on a GPU it comes with PyTorch.
    "triton>=3.6,<4; platform_system == 'Linux' and python_version >= '3.12'",
    "numpy>=1.26,<3",
    "pillow>=11,<14",
    # 0.2.2 refuses InternVL2's tokenizer ("piece must not include null character").
    "sentencepiece>=0.2,!=0.2.2,<0.3",
    # Tokenizers of the models that have no SentencePiece model: Qwen, Llama-3.
    "tokenizers>=0.21,<1",
    "protobuf>=4,<8",
    "safetensors>=0.5,<1",
    # Checksums of checkpoints, data sets and answers: ten times as fast as those of the standard library.
    "xxhash>=3.5,<5",
    "psutil>=6,<8",
    "tyro>=1.0,<2",
    "tqdm>=4.66,<5",
    "tensorboard>=2.18,<3",
    "matplotlib>=3.9,<4",
    # The report's page. PyTorch brings it along.
    "jinja2>=3.1,<4",
    "pyyaml>=6,<7",
]

EVAL_REQUIREMENTS = [
    "rapidfuzz>=3.10,<4",
    # Pinned: published ROUGE-L scores depend on what this very version counts.
    "rouge==1.0.1",
    "english-words>=2.0,<3",
    # MMMU's Parquet files, MMBench's submission.
    "pyarrow>=17,<27",
    "openpyxl>=3.1,<4",
]
# One metric no published task uses; 100 MB, and needs Java.
METEOR_REQUIREMENTS = ["pycocoevalcap>=1.2,<2"]

EXTRAS = {
    "eval": EVAL_REQUIREMENTS,
    "meteor": METEOR_REQUIREMENTS,
    # Found at run time, never required. NVIDIA Apex (fused optimizer kernels) is optional too, and is built
    # from its own source tree: the PyPI package called "apex" is something else.
    "gpu": ["transformer-engine[pytorch]>=2.0,<3", "flash-attn>=2.7,<3"],
    "video": ["av>=14,<19"],
    "wandb": ["wandb>=0.18,<1"],
    "mlflow": ["mlflow-skinny>=2.16,<4"],
    "test": [
        *EVAL_REQUIREMENTS,
        *METEOR_REQUIREMENTS,
        "pytest>=8,<10",
        "pytest-xdist>=3,<4",
        "hypothesis>=6.100,<7",
        # Its interpreter runs our kernels on the CPU. On a GPU it comes with PyTorch.
        "triton>=3.6,<4; platform_system == 'Linux'",
        "transformers>=5,<6",
        # Adapters are compared with those that it trains and writes.
        "peft>=0.19,<0.20",
        "scikit-image>=0.25,<0.27",
        "scikit-learn>=1.6,<2",
    ],
    # The site of docs/; see mkdocs.yml.
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.27,<2"],
    "dev": ["ruff>=0.12,<1", "pyright[nodejs]>=1.1.400,<2", "import-linter>=2.3,<3", "pre-commit>=4,<5"],
}

setup(
    name="megatron-v2pe",
    version=read_version(),
    description="InternVL2 on long multimodal context: variable visual position encoding on Megatron-Core",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="the megatron-v2pe authors",
    license="MIT",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["megatron_v2pe", "megatron_v2pe.*"]),
    package_data={
        "megatron_v2pe": ["py.typed"],
        "megatron_v2pe.evaluate.families.long_vqa": ["tables/*"],
        "megatron_v2pe.base.pages": ["*.j2", "*.js"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

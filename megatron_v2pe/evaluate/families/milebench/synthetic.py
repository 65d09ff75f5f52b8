"""Made-up sets of MileBench's 29 sets, in their published form."""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import SETS, Maker

OPEN = (
    *("ALFRED", "CLEVR-Change", "DocVQA", "IEdit", "MMCoQA", "OCR-VQA", "Spot-the-Diff"),
    *("TextNeedleInAHaystack", "ImageNeedleInAHaystack"),
)
"""Sets written as open-ended."""
CHOICE = (
    *("ActionLocalization", "ActionPrediction", "ActionSequence", "CharacterOrder", "CounterfactualInference"),
    *("EgocentricNavigation", "MovingAttribute", "MovingDirection", "ObjectExistence", "ObjectInteraction"),
    *("ObjectShuffle", "SceneTransition", "StateChange", "MultiModalQA", "nuscenes", "SlideVQA", "TQA", "WebQA"),
    *("WikiVQA", "GPR1200"),
)
"""Sets written as multiple choice."""
_DATASETS = {"milebench_" + name.lower().replace("-", "_"): name for name in (*OPEN, *CHOICE)}


@SETS.register(*_DATASETS)
def _milebench(make: Maker) -> None:
    dataset = _DATASETS[make.name]
    folder, open_ended = f"dataset/benchmark/MileBench/{dataset}", dataset in OPEN
    samples = []
    for number in range(make.questions):
        paths = [f"{number}_{place}.png" for place in range(1 + (number + 2) % 3)]
        drawn = [make.picture(f"{folder}/images/{path}") for path in paths]
        places = " ".join(f"{{image#{place}}}" for place in range(1, len(paths) + 1))
        # In one sample an image more than there are places.
        context = f"Pictures: {places} Colour of the last one?" if number != 1 else "Colour of the picture?"
        instance: dict[str, Any] = {"context": context, "images_path": paths}
        if not open_ended:
            many = [f"kind {kind}" for kind in range(30)] if dataset == "GPR1200" else []
            instance["choice_list"] = make.choices(drawn[-1].colour, 3) + many
        samples.append(
            {
                "sample_id": number,
                "task_instruction_id": number % 2,
                "task_instance": instance,
                "response": drawn[-1].colour,
                "image_quantity_level": "Few",
            }
        )
    meta = {
        "dataset": dataset,
        "question_type": "open-ended" if open_ended else "multi-choice",
        "task_instruction": ["Look at the pictures and answer.", "Given pictures, say what is asked."],
    }
    make.json(f"{folder}/{dataset}.json", {"meta_data": meta, "data": samples})


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "milebench": [
        {"kind": "rouge", "answer": "a cat. sat", "n_images": 3},
        {"kind": "needle", "answer": "12ab", "n_images": 40},
        {"kind": "mmcoqa", "answer": "12ab"},
        {"kind": "multichoice", "answer": "the dog", "choices": ["cat", "the dog", "3.5"], "n_images": 9},
    ],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""

"""Made-up sets of MVBench and Video-MME, in their published form."""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import SETS, Maker

_MVBENCH = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
_CLIPS = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")


@SETS.register("mvbench")
def _mvbench(make: Maker) -> None:
    root = "dataset/benchmark/MVBench"
    for folder in dict.fromkeys(_MVBENCH.values()):
        if folder.startswith("tvqa"):
            for number in range(1, 31):
                make.picture(f"{root}/video/{folder}/scene/{number:05d}.jpg")
        else:
            make.video(f"{root}/video/{folder}/clip.mp4")
    for task, folder in _MVBENCH.items():
        rows = []
        for number in range(2):
            candidates = make.choices("red", 3)
            clip = {"start": 0.5 + number, "end": 2.5 + number} if task in _CLIPS else {}
            video = "scene" if folder.startswith("tvqa") else "clip.mp4"
            question = f"Which colour comes first in {task.replace('_', ' ')} {number}?"
            rows.append({"video": video, "question": question, "candidates": candidates, "answer": "red", **clip})
        make.json(f"{root}/json/{task}.json", rows)


@SETS.register("videomme")
def _videomme(make: Maker) -> None:
    rows = []
    for number, duration in enumerate(("short", "medium", "long")):
        make.video(f"data/Video-MME/data/clip{number}.mp4", frames=20 + 10 * number)
        options = make.choices("red")
        rows.append(
            {
                "video_id": f"{number:03d}",
                "duration": duration,
                "domain": "Knowledge",
                "videoID": f"clip{number}",
                "question_id": f"{number:03d}-1",
                "task_type": "Attribute Perception",
                "question": "Which colour comes first?",
                "options": [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)],
                "answer": "ABCD"[options.index("red")],
            }
        )
    if make.parquet:
        make.table("data/Video-MME/videomme/test-00000-of-00001.parquet", rows)
    else:
        make.lines("data/Video-MME/videomme/test.jsonl", rows)


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "mvbench": [{"answer": "(A) The man.", "task_type": "State Change"}],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""

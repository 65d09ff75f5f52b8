"""Helpers for tests of this package and of code built on it: an index of its modules.

| module | what it holds |
|---|---|
| `adapters` | a small model with an adapter on every linear, and one step of it in any layout |
| `attacks` | files that run code when they are loaded carelessly, and every way a checkpoint is loaded |
| `attention` | attention of random packs by several processes beside a dense softmax, also with planted faults |
| `conversion` | whole tensors of a checkpoint folder as a model of any layout loads them |
| `counted_flops` | floating-point operations of a step as PyTorch's own counter sees them |
| `damage` | damage done to files on purpose, the same for the same seed |
| `data_cases` | a small data list with samples of every kind; comparing folders and batches |
| `dense_decoder` | a decoder written out plainly in float64, with explicit positions, for comparison |
| `documented_commands` | the commands that the pages tell a reader to type |
| `evaluation` | evaluation of a small checkpoint in any layout, with faults on single ranks |
| `evaluation_in_training` | short runs that evaluate while they train, in any layout, with faults planted |
| `family_cases` | a tiny checkpoint of every language model and both towers |
| `family_parity` | our model beside `transformers` for those checkpoints, in any layout |
| `family_reference` | the model of `transformers` that such a checkpoint describes |
| `generation` | generation with a cache beside the same answers recomputed whole at every step |
| `golden` | runs the golden cases of the published implementation through our model |
| `hand_written_sets` | files of a benchmark written row by row, and the questions made of them |
| `head_runs` | the head's choice of supervised rows over the slices of sequence parallelism |
| `health_runs` | short runs that watch themselves, in any layout, with numbers and bits spoilt on purpose |
| `held_runs` | training runs that stand still after a step, until a signal or a file lets them go on |
| `hf_names` | names and layouts of an HF checkpoint, written down a second time |
| `host_reads` | counts how often the host reads what a training step computes |
| `jobs` | jobs of several processes watched from outside: processes, ports, how they end |
| `kill_checks` | the frame of checks that kill a program at random moments and resume it |
| `lora` | LoRA on the small model of `parity`, with factors whose every number matters |
| `low_rank` | adapters of small models as PEFT writes them, and what our model computes with them |
| `made_up_card` | the optimizer in host memory, and the fused one, on a machine without a GPU |
| `made_up_runs` | the folder of a training run made without training |
| `many_commands` | many training command lines, one after the other in one process |
| `native_models` | small models of every language model in both Hugging Face layouts, their logits here and there |
| `non_finite` | models whose logits are not numbers, asked on every rank |
| `one_device` | whether everything of an opened model lies on the chosen device |
| `opened_images` | the images of benchmark questions, opened all at once |
| `oracles` | our decoder and tower with weights by HF name, for comparison with other libraries |
| `packs` | packs of random documents: odd lengths, several images, unusual micro-batches by name |
| `parity` | one training step in any parallel layout, for comparison with one process |
| `random_pauses` | a command whose threads and processes stand still at random, to find races (`CONTRIBUTING.md`) |
| `rank_problems` | what ranks see where one of them meets an error |
| `resaved` | converted checkpoints loaded into a model of some layout and saved from there |
| `run_pages` | a made-up run on disk, for its page |
| `sealing` | checksums made anew of checkpoint folders that a test has edited on purpose |
| `setting_oracle` | what every setting of a run may be, written down a second time |
| `shared` | material that is not part of the repository; tests skip where it is absent |
| `short_runs` | a few optimizer steps on fixed packs, saved and resumed in any layout |
| `step_memory` | one training step, its memory counted tensor by tensor |
| `token_runs` | small runs that add tokens, and what their checkpoints hold |
| `tokenizer_kinds` | a small tokenizer of every kind in the published layouts, and texts to compare tokenizers on |
| `tool_runs` | the command-line tools in processes of their own, as a user starts them |
| `towers` | small InternVits of both kinds, by transformers' own class and by ours in any layout |
| `validations` | the validation of a run in any layout, by a second way, and what it leaves as it was |
| `warm_python` | a `python` that has the project's imports behind it, for tests of many commands |
"""

"""The language models, vision towers and conversation templates that plug in: one folder each.

| file of a family | what it adds | registry |
|---|---|---|
| `config.py` | the reader of its section of `config.json` | `models/config_sections.py` |
| `hf_table.py` | its tensors in the HF checkpoint and their places in ours | `checkpoint/hf/table.py` |
| `template.py` | its conversation templates | `data/conversation.py` |
| `tower.py` | a vision tower's modules | `models/vision_tower.py` |
| `layers.py` | layers of a decoder that are not the usual ones | `models/language_model.py` |

The core finds the folders by itself and imports of each the one file it needs; no line of it names or imports a
family. `docs/add_a_language_model.md` adds one from outside, file by file.
"""

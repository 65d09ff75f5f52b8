"""From annotation files to packed micro-batches: text, tiles, labels, positions and loss weights.

A sample passes through these files, and takes the forms that the table in `types` lists:

    data_list, annotations (turns)            which data sets; a line is read
    encode                                    text becomes tokens, images are measured, positions are computed
        tokenize (conversation, tokenizer)
        image_plan (image_files, video)
    pack_plan (mixture, packing/)             the order of samples; which of them are trained together
    batch                                     tiles are read, labels shifted, tokens weighted
        image_tiles (image_files, image_operations)
    loader                                    planning in a thread, reading in processes, the state of both

`indexed/` does the first half beforehand and stores it. Nothing here knows a model, a process group or a device; ranks
arrive as plain integers.
"""

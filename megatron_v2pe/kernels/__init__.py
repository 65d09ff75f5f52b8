"""Operations in few passes over memory: a Triton kernel on CUDA, a plain form everywhere, under one signature."""

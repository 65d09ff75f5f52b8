"""The Triton kernels. Imported on CUDA only, and by tests in Triton's interpreter."""

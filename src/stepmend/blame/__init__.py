"""Which modules caused a low-bit model's faults, whether full precision there rescues problems, and a proposal of mixed precision."""

"""The demo domain: late flights and flight times of New York. Pure programs, files in, files out."""

import os

# Before numpy loads: a thread count is written into model files and changes sums. Trials run side by side instead.
os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})

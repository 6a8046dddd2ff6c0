"""Benchmarks: `python -m bench [capture|analysis]`. Each compares with other programs in the same run, since figures
of two runs on a shared machine say little."""

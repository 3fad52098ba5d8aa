"""The networks, as functions of tensors alone.

Read `spectra`, `convnext`, what the phase may start from (`pitch`, `harmonics`) and end with (`consistency`), then
`generator`, how it speaks while a mel arrives (`streaming`), how it is made faster (`runtime`, with `packed` layers and
`precision`, which says where bfloat16 does not pay), and `discriminators`; `scales` tells what a mel is in.
"""

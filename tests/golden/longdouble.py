"""exp and log of 80-bit floats by additions, multiplications and divisions alone, which are the same on every CPU. The
C library's come from instructions that differ between makers in the last bit. Other types: NumPy's."""
import numpy as np

LN_2 = np.longdouble("0.693147180559945309417232121458176568")
LN_2_HIGH = np.longdouble(float.fromhex("0x1.62e42fefap-1"))  # times a power of two of exp's: exact
LN_2_LOW = np.longdouble("1.646594958289708128098443075500134360e-12")


def exp(x):
    """2^k exp(r), |r| <= ln(2)/2, and the series of exp; 0 below e^-11000."""
    if x.dtype != np.longdouble:
        return np.exp(x)
    normal = x > -11000
    x = np.where(normal, x, 0)
    k = np.rint(x / LN_2)
    r = (x - k * LN_2_HIGH) - k * LN_2_LOW
    total = np.ones_like(x)
    for n in range(20, 0, -1):
        total = 1 + r * total / n
    return np.where(normal, np.ldexp(total, k.astype(np.int64)), 0)


def log(x):
    """k ln(2) + 2 atanh(s), s = (m - 1)/(m + 1), for x = 2^k m with m between 0.7 and 1.4."""
    if x.dtype != np.longdouble:
        return np.log(x)
    m, k = np.frexp(x)
    small = m * m < 0.5
    m, k = np.where(small, 2 * m, m), np.where(small, k - 1, k)
    s = (m - 1) / (m + 1)
    total = np.zeros_like(x)
    for n in range(31, 0, -2):
        total = total * s * s + np.longdouble(1) / n
    return k * LN_2 + 2 * s * total

# mypy: ignore-errors
# ruff: noqa: RUF005
"""The device code of `triton_kernels`: five kernels, and the functions that they are made of.

A number is a pair (mantissa, exponent). Pointers and strides count in elements of their tensors.
This is Triton's language, not Python's: values have no types that mypy knows, and tuples grow by
addition, as unpacking into them is not supported.
"""

from __future__ import annotations

import triton
import triton.language as tl

DEAD = tl.constexpr(-(1 << 30))  # twice this still fits an int32
DEAD_WORD = tl.constexpr(-(1 << 62))  # DEAD << 32
ONE_WORD = tl.constexpr(0x3F800000)
FORCED = tl.constexpr(1 << 31)  # a blank's word that names the one k it allows: no mantissa is < 0
OPEN = tl.constexpr(-1)  # arguments.MASK
LIMIT = tl.constexpr(float(1 << 22))  # logits: impossible from -LIMIT down, an overflow above
LOWEST = tl.constexpr(-3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LN_2_HIGH = tl.constexpr(355 / 512)  # 9 bits: n times this is exact for n < 2**15, fused or not
LN_2_LOW = tl.constexpr(0.6931471805599453 - 355 / 512)


# Numbers ------------------------------------------------------------------------------------


@triton.jit
def _packed(number):
    """One word; free, since its halves are registers."""
    bits = number[0].to(tl.uint32, bitcast=True).to(tl.int64)
    return (number[1].to(tl.int64) << 32) | bits


@triton.jit
def _unpacked(word):
    return word.to(tl.int32).to(tl.float32, bitcast=True), (word >> 32).to(tl.int32)


@triton.jit
def _power_of_2(exponent):
    """Exact, and 0 below 2**-126: the exponent shifted into its field."""
    return (tl.maximum(exponent + 127, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _sum(a, b):
    """`_power_of_2` is spelled out to share 127 - common: one instruction of ten."""
    common = tl.maximum(a[1], b[1])
    bias = 127 - common
    scale_a = (tl.maximum(a[1] + bias, 0) << 23).to(tl.float32, bitcast=True)
    scale_b = (tl.maximum(b[1] + bias, 0) << 23).to(tl.float32, bitcast=True)
    return a[0] * scale_a + b[0] * scale_b, common


@triton.jit
def _product(a, b):
    return a[0] * b[0], tl.maximum(a[1] + b[1], DEAD)


@triton.jit
def _where(condition, a, b):
    return tl.where(condition, a[0], b[0]), tl.where(condition, a[1], b[1])


@triton.jit
def _normal(number):
    """The same number with its mantissa in [1, 2), or (0, DEAD)."""
    bits = number[0].to(tl.int32, bitcast=True)
    alive = bits > 0
    exponent = tl.maximum(number[1] + (bits >> 23) - 127, DEAD)
    bits = tl.where(alive, (bits & 0x7FFFFF) | 0x3F800000, 0)
    return bits.to(tl.float32, bitcast=True), tl.where(alive, exponent, DEAD)


@triton.jit
def _split(x):
    """n and r with x = n ln 2 + r and abs(r) <= ln 2 / 2 (Cody and Waite); abs(x) <= 2**23."""
    n = tl.floor(x * LOG2_E + 0.5)
    r = tl.fma(-n, LN_2_HIGH, x)
    return n.to(tl.int32), tl.fma(-n, LN_2_LOW, r)


@triton.jit
def _exp(r):
    """Taylor to the seventh power: 5e-9 up to ln 2 / 2, better than the GPU's own exp."""
    y = r * (1 / 5040) + 1 / 720
    y = y * r + 1 / 120
    y = y * r + 1 / 24
    y = y * r + 1 / 6
    y = y * r + 0.5
    y = y * r + 1.0
    return y * r + 1.0


# Frames: softmax statistics and emissions ---------------------------------------------------


@triton.jit
def _clamped(values, most):
    """Lengths and tokens, so that unchecked ones cannot reach foreign memory."""
    return tl.minimum(tl.maximum(values.to(tl.int32), 0), most)


@triton.jit
def _token(targets, stride, k, size, n_tokens):
    """Target token k, 0 outside 0..size-1."""
    token = tl.load(targets + k * stride, mask=(k >= 0) & (k < size), other=0)
    return _clamped(token, n_tokens - 1)


@triton.jit
def _statistics(frame, stride, n_tokens, BLOCK: tl.constexpr):
    """A frame's maximum, and its sum of exp(x - maximum): NaN beside a NaN or an overflow."""
    highest = tl.full((), LOWEST, tl.float32)  # not -inf: -inf - -inf would be NaN
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, n_tokens, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = tl.load(frame + v * stride, mask=v < n_tokens, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    return highest, tl.where(highest <= LIMIT, total, float("nan"))


@triton.jit
def _emission(x, shift):
    """exp(x) / 2**shift as a word."""
    alive = (x > -LIMIT) & (x <= LIMIT)
    n, r = _split(tl.where(alive, x, 0.0))
    return _packed((tl.where(alive, _exp(r), 0.0), tl.where(alive, n - shift, DEAD)))


@triton.jit
def _forced(word, k):
    """What a blank's word says of blank k: state semantics fixes a frame to one blank."""
    bits = word.to(tl.int32)
    here = tl.where((bits & 0x7FFFFFFF) == k, ONE_WORD, DEAD_WORD)
    return tl.where(bits < 0, here, word)


@triton.jit
def _open_frame(
    frame, stride, n_tokens, targets, target_stride, size, blank, labels, blanks,
    highest_at, inverse_at, log_total_at,
    REGISTERS: tl.constexpr, LANES: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Emissions exp(x) / 2**shift, the largest near 1: no rounding comes before the exponential."""
    highest, total = _statistics(frame, stride, n_tokens, BLOCK_V)
    shift, rest = _split(tl.where((total > 0) & (highest > -LIMIT), highest, 0.0))
    tl.store(highest_at, highest)
    tl.store(inverse_at, 1 / total)
    log_total = tl.log(total) + rest  # of the emissions, not of exp(x)
    tl.store(log_total_at, tl.where(total > 0, log_total, total))  # 0: impossible, like all else
    for start in range(0, REGISTERS * LANES, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        k = (place % LANES) * REGISTERS + place // LANES
        token = _token(targets, target_stride, k, size, n_tokens)
        x = tl.load(frame + token * stride, mask=k < size, other=-float("inf")).to(tl.float32)
        word = _emission(x, shift)
        tl.store(labels + place, word, mask=place < REGISTERS * LANES)
    x = tl.load(frame + blank * stride).to(tl.float32)
    tl.store(blanks, _emission(x, shift))


@triton.jit
def _fixed_frame(
    value, n_tokens, targets, target_stride, size, blank, labels, blanks, log_total_at,
    STATES: tl.constexpr, REGISTERS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """1 for the states that `value` names, 0 for the others."""
    tl.store(log_total_at, 0.0)
    for start in range(0, REGISTERS * LANES, BLOCK):
        place = start + tl.arange(0, BLOCK)
        k = (place % LANES) * REGISTERS + place // LANES
        if STATES:
            here = value == 2 * k + 1
        else:
            here = value == _token(targets, target_stride, k, size, n_tokens)
        word = tl.where(here & (k < size), ONE_WORD, DEAD_WORD)
        tl.store(labels + place, word, mask=place < REGISTERS * LANES)
    if STATES:
        tl.store(blanks, tl.where(value % 2 == 0, FORCED | (value // 2), DEAD_WORD))
    else:
        tl.store(blanks, tl.where(value == blank, ONE_WORD, DEAD_WORD))


@triton.jit(do_not_specialize=["targets_b", "partial_b", "n_frames", "longest", "blank"])
def emissions_kernel(
    logits, logits_b, logits_t, logits_v, targets, targets_b, targets_s, partial, partial_b,
    partial_t, input_lengths, target_lengths, labels, blanks, highest, inverse, log_total,
    n_frames, n_tokens, longest, blank,
    STATES: tl.constexpr, REGISTERS: tl.constexpr, LANES: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program a frame: bound by reading V logits and writing 8 bytes a label."""
    at = tl.program_id(0).to(tl.int64)
    b, t = at // n_frames, at % n_frames
    if t < _clamped(tl.load(input_lengths + b), n_frames):
        size = _clamped(tl.load(target_lengths + b), longest)
        value = tl.load(partial + b * partial_b + t * partial_t)
        labels += at * REGISTERS * LANES
        targets += b * targets_b
        if value == OPEN:
            _open_frame(
                logits + b * logits_b + t * logits_t, logits_v, n_tokens, targets, targets_s, size,
                blank, labels, blanks + at, highest + at, inverse + at, log_total + at,
                REGISTERS, LANES, BLOCK_V, BLOCK_K,
            )  # fmt: skip
        else:
            _fixed_frame(
                value, n_tokens, targets, targets_s, size, blank, labels, blanks + at,
                log_total + at, STATES, REGISTERS, LANES, BLOCK_K,
            )  # fmt: skip


# Walks: half of alpha or beta ---------------------------------------------------------------
# A state is (blanks, labels), each a tuple of REGISTERS numbers over lanes. `lanes` is (lane, lane
# before, lane after), the last two around the ends: the last label is never alive (there are more
# states than labels), and whatever reaches it through the end has no posterior.


@triton.jit
def _lanes(LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    return lane, (lane + (LANES - 1)) % LANES, (lane + 1) % LANES


@triton.jit
def _one_at(here):
    return tl.where(here, 1.0, 0.0), tl.where(here, 0, DEAD)


@triton.jit
def _start(lanes, blank, label, REGISTERS: tl.constexpr):
    """1 at one blank and one label (-1: none), 0 elsewhere."""
    blanks, labels = (), ()
    for r in tl.static_range(REGISTERS):
        k = lanes[0] * REGISTERS + r
        blanks = blanks + (_one_at(k == blank),)
        labels = labels + (_one_at(k == label),)
    return blanks, labels


@triton.jit
def _shifted(number, shift):
    """Divided by 2**shift."""
    alive = number[0] > 0
    return number[0], tl.where(alive, tl.maximum(number[1] - shift, DEAD), DEAD)


@triton.jit
def _resumed(words, shift, REGISTERS: tl.constexpr, LANES: tl.constexpr):
    """A stored state, divided by 2**shift."""
    blanks, labels = (), ()
    for r in tl.static_range(REGISTERS):
        blank = tl.load(words + r * LANES)
        label = tl.load(words + (REGISTERS + r) * LANES)
        blanks = blanks + (_shifted(_unpacked(blank), shift),)
        labels = labels + (_shifted(_unpacked(label), shift),)
    return blanks, labels


@triton.jit
def _normal_state(state, REGISTERS: tl.constexpr):
    blanks, labels = (), ()
    for r in tl.static_range(REGISTERS):
        blanks = blanks + (_normal(state[0][r]),)
        labels = labels + (_normal(state[1][r]),)
    return blanks, labels


@triton.jit
def _skips(targets, stride, size, n_tokens, lanes, REGISTERS: tl.constexpr):
    """Labels that may follow the label before without a blank, a tuple of bools."""
    skips = ()
    for r in tl.static_range(REGISTERS):
        k = lanes[0] * REGISTERS + r
        token = _token(targets, stride, k, size, n_tokens)
        skips = skips + (token != _token(targets, stride, k - 1, size, n_tokens),)
    return skips


@triton.jit
def _alpha_step(state, words, skips, lanes, STATES: tl.constexpr, REGISTERS: tl.constexpr):
    """blank'[k] = (blank[k] + label[k-1]) p;  label'[k] = (label[k] + blank[k] (+ label[k-1])) p"""
    blanks, labels = (), ()
    before = _unpacked(tl.gather(_packed(state[1][REGISTERS - 1]), lanes[1], 0))
    for r in tl.static_range(REGISTERS):
        blank, label, word = state[0][r], state[1][r], words[0]
        if STATES:
            word = _forced(word, lanes[0] * REGISTERS + r)
        both = _sum(blank, before)
        into = _sum(label, _where(skips[r], both, blank))
        before = label
        blanks = blanks + (_product(both, _unpacked(word)),)
        labels = labels + (_product(into, _unpacked(words[1 + r])),)
    return blanks, labels


@triton.jit
def _beta_step(state, words, skips, lanes, STATES: tl.constexpr, REGISTERS: tl.constexpr):
    """The mirror image. With b = blank p and l = label p, p being of the frame that is left,

    blank'[k] = b[k] + l[k];  label'[k] = l[k] + b[k+1] (+ l[k+1])
    """
    blanks, left, offers = (), (), ()  # what k offers label k - 1: b[k] (+ l[k])
    for r in tl.static_range(REGISTERS):
        word = words[0]
        if STATES:
            word = _forced(word, lanes[0] * REGISTERS + r)
        blank = _product(state[0][r], _unpacked(word))
        label = _product(state[1][r], _unpacked(words[1 + r]))
        both = _sum(blank, label)
        blanks, left = blanks + (both,), left + (label,)
        offers = offers + (_where(skips[r], both, blank),)
    offers = offers + (_unpacked(tl.gather(_packed(offers[0]), lanes[2], 0)),)
    labels = ()
    for r in tl.static_range(REGISTERS):
        labels = labels + (_sum(left[r], offers[r + 1]),)
    return blanks, labels


@triton.jit
def _store_state(out, state, mask, REGISTERS: tl.constexpr, LANES: tl.constexpr):
    for r in tl.static_range(REGISTERS):
        tl.store(out + r * LANES, _packed(state[0][r]), mask=mask)
        tl.store(out + (REGISTERS + r) * LANES, _packed(state[1][r]), mask=mask)


@triton.jit
def _store_posteriors(out, state, kept, mask, REGISTERS: tl.constexpr, LANES: tl.constexpr):
    """Posteriors up to the frame's own factor: REGISTERS rows of labels, one of blanks' sums."""
    blanks = tl.full((LANES,), 0.0, tl.float32)
    for r in tl.static_range(REGISTERS):
        blank = _product(state[0][r], _unpacked(kept[r]))
        label = _product(state[1][r], _unpacked(kept[REGISTERS + r]))
        blanks += blank[0] * _power_of_2(blank[1])
        tl.store(out + r * LANES, label[0] * _power_of_2(label[1]), mask=mask)
    tl.store(out + REGISTERS * LANES, blanks, mask=mask)


@triton.jit
def _fetched(
    labels, blanks, kept, WAY: tl.constexpr, POSTERIORS: tl.constexpr,
    REGISTERS: tl.constexpr, LANES: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """Words of UNROLLED steps: emissions, and the other half's states."""
    emitted, others = (), ()
    for u in tl.static_range(UNROLLED):
        words, other = (tl.load(blanks + WAY * u),), ()
        for r in tl.static_range(REGISTERS):
            words = words + (tl.load(labels + (WAY * u * REGISTERS + r) * LANES),)
        if POSTERIORS:
            for r in tl.static_range(2 * REGISTERS):
                other = other + (tl.load(kept + (WAY * u * 2 * REGISTERS + r) * LANES),)
        emitted, others = emitted + (words,), others + (other,)
    return emitted, others


@triton.jit
def _walk(
    state, n_steps, skips, lanes, labels, blanks, kept, out,
    WAY: tl.constexpr, POSTERIORS: tl.constexpr, STATES: tl.constexpr, REGISTERS: tl.constexpr,
    LANES: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """`n_steps` of alpha (WAY = 1) or beta (-1), from the frame that the pointers are at.

    Stores states, or posteriors with the other half's states in `kept`. Words are loaded UNROLLED
    steps before they are used, which hides the memory's latency. The last turn may walk up to
    UNROLLED - 1 steps past the end, over any words of the workspace, and does not store those.
    Mantissas are brought back every 8 steps or fewer, so they stay below 5**16.
    """
    OUT: tl.constexpr = ((REGISTERS + 1) if POSTERIORS else 2 * REGISTERS) * LANES
    ahead = _fetched(labels, blanks, kept, WAY, POSTERIORS, REGISTERS, LANES, UNROLLED)
    for start in range(0, n_steps, UNROLLED):
        words, others = ahead
        left = n_steps - start
        advance = tl.where(left > UNROLLED, WAY * UNROLLED, 0)
        labels += advance * (REGISTERS * LANES)
        blanks += advance
        kept += advance * (2 * REGISTERS * LANES)
        ahead = _fetched(labels, blanks, kept, WAY, POSTERIORS, REGISTERS, LANES, UNROLLED)
        if UNROLLED < 4:
            if start % 8 == 0:
                state = _normal_state(state, REGISTERS)
        else:
            state = _normal_state(state, REGISTERS)
        for u in tl.static_range(UNROLLED):
            if WAY == 1:
                state = _alpha_step(state, words[u], skips, lanes, STATES, REGISTERS)
            else:
                state = _beta_step(state, words[u], skips, lanes, STATES, REGISTERS)
            if POSTERIORS:
                _store_posteriors(out, state, others[u], u < left, REGISTERS, LANES)
            else:
                _store_state(out, state, u < left, REGISTERS, LANES)
            out += WAY * OUT


@triton.jit
def _sort(
    targets, stride, size, n_tokens, order,
    REGISTERS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Labels by token, then by k, as words ``token << 32 | place``: repeats end up together."""
    for start in range(0, size, BLOCK):
        k = start + tl.arange(0, BLOCK)
        token = _token(targets, stride, k, size, n_tokens)
        rank = tl.full((BLOCK,), 0, tl.int32)
        for other in range(size):
            against = _token(targets, stride, other, size, n_tokens)
            rank += ((against < token) | ((against == token) & (other < k))).to(tl.int32)
        place = (k % REGISTERS) * LANES + k // REGISTERS
        tl.store(order + rank, (token.to(tl.int64) << 32) | place, mask=k < size)


@triton.jit(
    do_not_specialize=["targets_b", "targets_s", "n_frames", "n_tokens", "longest"],
    do_not_specialize_on_alignment=["targets", "input_lengths", "target_lengths"],
)
def first_half_kernel(
    targets, targets_b, targets_s, input_lengths, target_lengths, labels, blanks, states, order,
    n_frames, n_tokens, longest,
    STATES: tl.constexpr, REGISTERS: tl.constexpr, LANES: tl.constexpr, UNROLLED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs (b, 0), (b, 1), (b, 2): alpha to the middle, beta to the middle, the sort.

    Row t of `states` is alpha of frame t before the middle, beta of frame t - 1 after it.
    """
    b = tl.program_id(0).to(tl.int64)
    length = _clamped(tl.load(input_lengths + b), n_frames)
    size = _clamped(tl.load(target_lengths + b), longest)
    middle = (length + 1) // 2
    targets += b * targets_b
    if tl.program_id(1) == 2:
        _sort(targets, targets_s, size, n_tokens, order + b * longest, REGISTERS, LANES, BLOCK)
    else:
        lanes = _lanes(LANES)
        skips = _skips(targets, targets_s, size, n_tokens, lanes, REGISTERS)
        label = labels + b * n_frames * REGISTERS * LANES + lanes[0]
        blank = blanks + b * n_frames
        row = states + b * (n_frames + 1) * 2 * REGISTERS * LANES + lanes[0]
        if tl.program_id(1) == 0:
            state = _start(lanes, 0, -1, REGISTERS)
            _walk(
                state, middle, skips, lanes, label, blank, row, row,
                1, False, STATES, REGISTERS, LANES, UNROLLED,
            )  # fmt: skip
        elif length > 0:
            state = _start(lanes, size, size - 1, REGISTERS)
            last = (length - 1).to(tl.int64)
            row_before = row + last * 2 * REGISTERS * LANES
            row_last = row_before + 2 * REGISTERS * LANES
            _store_state(row_last, state, True, REGISTERS, LANES)
            _walk(
                state, length - middle, skips, lanes, label + last * REGISTERS * LANES,
                blank + last, row_last, row_before,
                -1, False, STATES, REGISTERS, LANES, UNROLLED,
            )  # fmt: skip


@triton.jit(do_not_specialize=["n_frames", "longest"])
def loss_kernel(
    states, log_total, input_lengths, target_lengths, total_exponents, losses, n_frames, longest,
    REGISTERS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program an utterance: where the halves meet, and the frames' normalisers in float64."""
    WORDS: tl.constexpr = 2 * REGISTERS * LANES
    b = tl.program_id(0).to(tl.int64)
    length = _clamped(tl.load(input_lengths + b), n_frames)
    if length == 0:
        size = _clamped(tl.load(target_lengths + b), longest)
        tl.store(losses + b, tl.where(size == 0, 0.0, float("inf")))
        tl.store(total_exponents + b, 0)
    else:
        states += (b * (n_frames + 1) + (length + 1) // 2) * WORDS
        sums = tl.full((BLOCK,), 0.0, tl.float32), tl.full((BLOCK,), DEAD, tl.int32)
        for start in range(0, WORDS, BLOCK):
            at = start + tl.arange(0, BLOCK)
            alpha = tl.load(states + at - WORDS, mask=at < WORDS, other=DEAD_WORD)
            beta = tl.load(states + at, mask=at < WORDS, other=DEAD_WORD)
            sums = _sum(sums, _product(_unpacked(alpha), _unpacked(beta)))
        exponent = tl.where(sums[0] > 0, sums[1], DEAD)
        common = tl.max(exponent, 0)
        total, common = _normal((tl.sum(sums[0] * _power_of_2(exponent - common), 0), common))
        tl.store(total_exponents + b, common)
        logs = tl.full((BLOCK_T,), 0.0, tl.float64)
        for start in range(0, length, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            logs += tl.load(log_total + b * n_frames + t, mask=t < length, other=0.0)
        loss = tl.sum(logs, 0) - (common.to(tl.float64) * LN_2 + tl.log(total))
        dead = (total == 0) & (loss == loss)
        tl.store(losses + b, tl.where(dead, float("inf"), loss.to(tl.float32)))


@triton.jit(
    do_not_specialize=["targets_b", "targets_s", "n_frames", "n_tokens", "longest"],
    do_not_specialize_on_alignment=["targets", "input_lengths", "target_lengths"],
)
def second_half_kernel(
    targets, targets_b, targets_s, input_lengths, target_lengths, labels, blanks, states,
    total_exponents, losses, posteriors, n_frames, n_tokens, longest,
    STATES: tl.constexpr, REGISTERS: tl.constexpr, LANES: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """Programs (b, 0), (b, 1): alpha from the middle to the end, beta from there to the start.

    Both divide by the total's power of 2, so that products of the two are posteriors.
    """
    WORDS: tl.constexpr = 2 * REGISTERS * LANES
    OUT: tl.constexpr = (REGISTERS + 1) * LANES
    b = tl.program_id(0).to(tl.int64)
    length = _clamped(tl.load(input_lengths + b), n_frames)
    if (length > 0) & (tl.load(losses + b) < float("inf")):
        size = _clamped(tl.load(target_lengths + b), longest)
        middle = ((length + 1) // 2).to(tl.int64)
        shift = tl.load(total_exponents + b)
        lanes = _lanes(LANES)
        skips = _skips(targets + b * targets_b, targets_s, size, n_tokens, lanes, REGISTERS)
        label = labels + (b * n_frames + middle) * REGISTERS * LANES + lanes[0]
        blank = blanks + b * n_frames + middle
        row = states + (b * (n_frames + 1) + middle) * WORDS + lanes[0]
        posterior = posteriors + (b * n_frames + middle) * OUT + lanes[0]
        if tl.program_id(1) == 0:
            state = _resumed(row - WORDS, shift, REGISTERS, LANES)
            beta = ()
            for r in tl.static_range(2 * REGISTERS):
                beta = beta + (tl.load(row + r * LANES),)
            _store_posteriors(posterior - OUT, state, beta, True, REGISTERS, LANES)
            _walk(
                state, length - middle.to(tl.int32), skips, lanes, label, blank, row + WORDS,
                posterior, 1, True, STATES, REGISTERS, LANES, UNROLLED,
            )  # fmt: skip
        else:
            state = _resumed(row, shift, REGISTERS, LANES)
            _walk(
                state, middle.to(tl.int32) - 1, skips, lanes, label - REGISTERS * LANES,
                blank - 1, row - 2 * WORDS, posterior - 2 * OUT,
                -1, True, STATES, REGISTERS, LANES, UNROLLED,
            )  # fmt: skip


# Frames: the gradient -----------------------------------------------------------------------


@triton.jit
def _add_runs(value, starts, value_2, starts_2):
    """Sums within runs, for a scan: a value that starts a run forgets what came before."""
    return tl.where(starts_2, value_2, value + value_2), starts | starts_2


@triton.jit
def _subtract_posteriors(
    frame, stride, gradient, gradient_stride, order, posteriors, size, blank, highest, inverse,
    weight, REGISTERS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Overwrite the target's tokens and the blank, each once, in an order that never changes."""
    lane = tl.arange(0, LANES)
    blanks = tl.sum(tl.load(posteriors + REGISTERS * LANES + lane), 0)
    j = tl.arange(0, BLOCK)
    used = j < size
    word = tl.load(order + j, mask=used, other=-1)
    token = (word >> 32).to(tl.int32)
    before = tl.load(order + j - 1, mask=used & (j > 0), other=-1) >> 32
    after = tl.load(order + j + 1, mask=j + 1 < size, other=-1) >> 32
    posterior = tl.load(posteriors + word.to(tl.int32), mask=used, other=0.0)
    scale = 1 / (blanks + tl.sum(posterior, 0))
    total, _ = tl.associative_scan((posterior, token != before), 0, _add_runs)
    last = used & (token != after)
    x = tl.load(frame + token * stride, mask=last, other=0.0).to(tl.float32)
    slope = tl.exp(x - highest) * inverse - total * scale
    tl.store(gradient + token * gradient_stride, slope * weight, mask=last)
    x = tl.load(frame + blank * stride).to(tl.float32)
    slope = tl.exp(x - highest) * inverse - blanks * scale
    tl.store(gradient + blank * gradient_stride, slope * weight)


@triton.jit(do_not_specialize=["partial_b", "n_frames", "longest", "blank"])
def gradient_kernel(
    logits, logits_b, logits_t, logits_v, gradient, gradient_b, gradient_t, gradient_v, partial,
    partial_b, partial_t, input_lengths, target_lengths, order, highest, inverse, posteriors,
    losses, weights, weights_b, n_frames, n_tokens, longest, blank,
    REGISTERS: tl.constexpr, LANES: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program a frame: bound by reading V logits and writing V slopes."""
    at = tl.program_id(0).to(tl.int64)
    b, t = at // n_frames, at % n_frames
    inside = t < _clamped(tl.load(input_lengths + b), n_frames)
    is_open = inside & (tl.load(partial + b * partial_b + t * partial_t) == OPEN)
    loss = tl.load(losses + b)
    frame = logits + b * logits_b + t * logits_t
    gradient += b * gradient_b + t * gradient_t
    if is_open & (loss < float("inf")):
        top, scale = tl.load(highest + at), tl.load(inverse + at)
        weight = tl.load(weights + b * weights_b).to(tl.float32)
        for start in range(0, n_tokens, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            x = tl.load(frame + v * logits_v, mask=v < n_tokens, other=0.0).to(tl.float32)
            slope = tl.exp(x - top) * scale * weight
            tl.store(gradient + v * gradient_v, slope, mask=v < n_tokens)
        tl.debug_barrier()  # the softmax is written before other threads overwrite some of it
        size = _clamped(tl.load(target_lengths + b), longest)
        _subtract_posteriors(
            frame, logits_v, gradient, gradient_v, order + b * longest,
            posteriors + at * (REGISTERS + 1) * LANES, size, blank, top, scale, weight,
            REGISTERS, LANES, BLOCK_K,
        )  # fmt: skip
    else:
        fill = tl.where(is_open & (loss != loss), float("nan"), 0.0)
        for start in range(0, n_tokens, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            filled = tl.full((BLOCK_V,), 0.0, tl.float32) + fill
            tl.store(gradient + v * gradient_v, filled, mask=v < n_tokens)

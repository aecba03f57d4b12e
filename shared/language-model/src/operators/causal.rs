//! Causal attention of one context in float32: softmax(q·kᵀ / sqrt(head_dim))·v over the positions up to its own.

use matrix_units::Out;

use super::elementwise::exponentials;

/// Rows of queries, or of scores, that are computed together.
const ROWS: usize = 8;
/// Columns of scores or of results that are computed together: two of the widest vectors.
const COLUMNS: usize = 32;

/// Rows of which a head is some columns: element (position, i) is at position·row + first + i.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub(crate) numbers: &'a [f32],
    /// Numbers of a row.
    pub(crate) row: usize,
    /// Where head 0 begins in a row.
    pub(crate) first: usize,
    /// How far apart heads begin.
    pub(crate) stride: usize,
}

impl<'a> Heads<'a> {
    /// One head at one position.
    fn head(&self, position: usize, head: usize, width: usize) -> &'a [f32] {
        &self.numbers[position * self.row + self.first + head * self.stride..][..width]
    }

    /// The rows of one of several contexts of this length.
    pub(crate) fn context(self, context: usize, length: usize) -> Heads<'a> {
        Heads { numbers: &self.numbers[context * length * self.row..][..length * self.row], ..self }
    }

    /// Whether that many heads of that width lie within a row, and that many rows within the numbers.
    pub(crate) fn holds(&self, rows: usize, heads: usize, width: usize) -> bool {
        let last = heads
            .saturating_sub(1)
            .checked_mul(self.stride)
            .and_then(|last| last.checked_add(self.first + width));
        last.is_some_and(|end| end <= self.row) && rows.checked_mul(self.row) == Some(self.numbers.len())
    }
}

/// Cosines and sines, [length, half] each: component i of a head is turned against component i + half.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    pub(crate) half: usize,
}

impl Turn<'_> {
    /// Puts a turned head into `to`.
    fn apply(&self, position: usize, head: &[f32], to: &mut [f32]) {
        let half = self.half;
        let (cos, sin) = (&self.cos[position * half..][..half], &self.sin[position * half..][..half]);
        let (first, second) = (&head[..half], &head[half..2 * half]);
        to.copy_from_slice(head);
        for i in 0..half {
            to[i] = first[i] * cos[i] - second[i] * sin[i];
            to[half + i] = second[i] * cos[i] + first[i] * sin[i];
        }
    }
}

/// A context's queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) q: Heads<'a>,
    pub(crate) k: Heads<'a>,
    pub(crate) v: Heads<'a>,
    pub(crate) turn: Option<Turn<'a>>,
    pub(crate) length: usize,
    pub(crate) head_dim: usize,
    /// Query heads that read the same key and value head.
    pub(crate) group: usize,
}

/// Memory for a context, kept from one to the next.
#[derive(Default)]
pub(crate) struct Space {
    /// Turned keys with columns for rows, [head_dim, length rounded up].
    keys: Vec<f32>,
    /// [length, head_dim rounded up].
    values: Vec<f32>,
    /// Some turned and scaled queries, [ROWS, head_dim].
    queries: Vec<f32>,
    /// [ROWS, length rounded up].
    scores: Vec<f32>,
    /// [group, ROWS, head_dim rounded up].
    results: Vec<f32>,
}

impl Attention<'_> {
    /// The query heads of key and value head `kv`, into the columns `[length, group * head_dim]` of `out`.
    pub(crate) fn attend(&self, kv: usize, space: &mut Space, mut out: Out<'_>) {
        let (columns, width) =
            (self.length.next_multiple_of(COLUMNS), self.head_dim.next_multiple_of(COLUMNS));
        self.gather(kv, columns, width, space);
        space.queries.resize(ROWS * self.head_dim, 0.0);
        space.scores.resize(ROWS * columns, 0.0);
        space.results.resize(self.group * ROWS * width, 0.0);
        let mut position = 0;
        out.for_each_row(|row| {
            if position % ROWS == 0 {
                for head in 0..self.group {
                    self.rows(kv * self.group + head, head, position, columns, width, space);
                }
            }
            for (head, part) in row.chunks_exact_mut(self.head_dim).enumerate() {
                part.copy_from_slice(
                    &space.results[(head * ROWS + position % ROWS) * width..][..self.head_dim],
                );
            }
            position += 1;
        });
    }

    /// Keys and values of a head as the products want them.
    fn gather(&self, kv: usize, columns: usize, width: usize, space: &mut Space) {
        space.keys.clear();
        space.keys.resize(self.head_dim * columns, 0.0);
        space.values.clear();
        space.values.resize(self.length * width, 0.0);
        let mut turned = vec![0.0; self.head_dim];
        for position in 0..self.length {
            self.turned(&self.k, position, kv, &mut turned);
            for (i, x) in turned.iter().enumerate() {
                space.keys[i * columns + position] = *x;
            }
            let value = self.v.head(position, kv, self.head_dim);
            space.values[position * width..][..self.head_dim].copy_from_slice(value);
        }
    }

    fn turned(&self, of: &Heads<'_>, position: usize, head: usize, to: &mut [f32]) {
        let head = of.head(position, head, self.head_dim);
        match self.turn {
            Some(turn) => turn.apply(position, head, to),
            None => to.copy_from_slice(head),
        }
    }

    /// Results of the query head `head` at ROWS positions from `first` on, to the place of head `index` of the group.
    fn rows(&self, head: usize, index: usize, first: usize, columns: usize, width: usize, space: &mut Space) {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let count = ROWS.min(self.length - first);
        for row in 0..count {
            let query = &mut space.queries[row * self.head_dim..][..self.head_dim];
            self.turned(&self.q, first + row, head, query);
            query.iter_mut().for_each(|x| *x *= scale);
        }
        // Positions that some of these see.
        let seen = first + count;
        for column in (0..seen).step_by(COLUMNS) {
            let keys = &space.keys[column..];
            product(
                &space.queries,
                self.head_dim,
                keys,
                columns,
                self.head_dim,
                &mut space.scores[column..],
                columns,
            );
        }
        let mut sums = [1.0; ROWS];
        for row in 0..count {
            let scores = &mut space.scores[row * columns..][..columns];
            sums[row] = exponentials(&mut scores[..=first + row]);
            scores[first + row + 1..seen].fill(0.0);
        }
        let results = &mut space.results[index * ROWS * width..][..ROWS * width];
        for column in (0..width).step_by(COLUMNS) {
            let values = &space.values[column..];
            product(&space.scores, columns, values, width, seen, &mut results[column..], width);
        }
        for (row, sum) in results.chunks_exact_mut(width).zip(sums) {
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

/// c = a·b, ROWS × `depth` times `depth` × COLUMNS; rows of a, b and c lie `a_row`, `b_row` and `c_row` numbers apart. Sums
/// go over the depth in its order.
fn product(a: &[f32], a_row: usize, b: &[f32], b_row: usize, depth: usize, c: &mut [f32], c_row: usize) {
    assert!(depth > 0 && a.len() >= (ROWS - 1) * a_row + depth && b.len() >= (depth - 1) * b_row + COLUMNS);
    assert!(c.len() >= (ROWS - 1) * c_row + COLUMNS);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the vectors, and the numbers are there.
        unsafe { product_avx512(a.as_ptr(), a_row, b.as_ptr(), b_row, depth, c.as_mut_ptr(), c_row) };
        return;
    }
    product_plain(a, a_row, b, b_row, depth, c, c_row);
}

/// # Safety
/// The processor has AVX-512; the numbers of [`product`] can be read and written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn product_avx512(
    a: *const f32,
    a_row: usize,
    b: *const f32,
    b_row: usize,
    depth: usize,
    c: *mut f32,
    c_row: usize,
) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for k in 0..depth {
            let b = b.add(k * b_row);
            let right = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(*a.add(row * a_row + k));
                sums[0] = _mm512_fmadd_ps(left, right[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(left, right[1], sums[1]);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(c.add(row * c_row), sums[0]);
            _mm512_storeu_ps(c.add(row * c_row + 16), sums[1]);
        }
    }
}

fn product_plain(
    a: &[f32],
    a_row: usize,
    b: &[f32],
    b_row: usize,
    depth: usize,
    c: &mut [f32],
    c_row: usize,
) {
    for row in 0..ROWS {
        let sums = &mut c[row * c_row..][..COLUMNS];
        sums.fill(0.0);
        for k in 0..depth {
            let left = a[row * a_row + k];
            sums.iter_mut().zip(&b[k * b_row..]).for_each(|(sum, right)| *sum = left.mul_add(*right, *sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 * 1e-3 - 1.0).collect()
    }

    #[test]
    fn vectors_give_the_bits_of_the_plain_loop() {
        for depth in [1, 7, 64] {
            let (a, b) = (numbers(ROWS * 70, 1), numbers(70 * 40, 2));
            let (mut found, mut expected) = (vec![0.0; ROWS * 33], vec![0.0; ROWS * 33]);
            product(&a, 70, &b, 40, depth, &mut found, 33);
            product_plain(&a, 70, &b, 40, depth, &mut expected, 33);
            assert_eq!(found, expected);
        }
    }

    /// The definition in float64.
    fn plain(attention: &Attention<'_>, head: usize, i: usize) -> Vec<f64> {
        let turned = |heads: &Heads<'_>, position: usize, head: usize| {
            let mut to = vec![0.0; attention.head_dim];
            attention.turned(heads, position, head, &mut to);
            to
        };
        let kv = head / attention.group;
        let q = turned(&attention.q, i, head);
        let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let scale = (attention.head_dim as f64).sqrt();
        let scores: Vec<f64> = (0..=i).map(|j| (dot(&turned(&attention.k, j, kv)) / scale).exp()).collect();
        let sum: f64 = scores.iter().sum();
        let mut z = vec![0.0; attention.head_dim];
        for (j, score) in scores.iter().enumerate() {
            let value = attention.v.head(j, kv, attention.head_dim);
            z.iter_mut().zip(value).for_each(|(z, v)| *z += score / sum * f64::from(*v));
        }
        z
    }

    #[test]
    fn attention_is_that_of_the_definition_for_any_sizes_and_layout() {
        for (length, head_dim, heads, group, half, interleaved) in [
            (1, 4, 1, 1, 0, false),
            (5, 6, 4, 2, 3, false),
            (33, 40, 2, 1, 8, true),
            (130, 64, 3, 3, 32, false),
            (64, 64, 2, 1, 0, true),
        ] {
            let kv_heads = heads / group;
            let row = (heads + 2 * kv_heads) * head_dim;
            let qkv = numbers(length * row, 3);
            let at = |part: usize| {
                let (first, stride) = match interleaved {
                    true => (part * head_dim, 3 * head_dim),
                    false => ([0, heads, heads + kv_heads][part] * head_dim, head_dim),
                };
                Heads { numbers: &qkv, row, first, stride }
            };
            let angles = numbers(length * half, 4);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|x| (x.cos(), x.sin())).unzip();
            let turn = (half > 0).then_some(Turn { cos: &cos, sin: &sin, half });
            let attention = Attention { q: at(0), k: at(1), v: at(2), turn, length, head_dim, group };
            assert!(
                attention.q.holds(length, heads, head_dim) && !attention.q.holds(length + 1, heads, head_dim)
            );
            let mut space = Space::default();
            for kv in 0..kv_heads {
                let mut out = vec![0.0; length * group * head_dim];
                attention.attend(kv, &mut space, Out::new(&mut out, length, group * head_dim));
                for (i, row) in out.chunks_exact(group * head_dim).enumerate() {
                    for (head, found) in row.chunks_exact(head_dim).enumerate() {
                        let expected = plain(&attention, kv * group + head, i);
                        for (found, expected) in found.iter().zip(expected) {
                            assert!(
                                (f64::from(*found) - expected).abs() < 2e-6,
                                "{length} {i} {head}: {found} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

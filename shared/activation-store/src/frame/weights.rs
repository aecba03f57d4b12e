//! The description of a Huffman code in a zstd frame (RFC 8878, section 4.2.1): the symbols' weights, as they are or
//! entropy-coded with FSE. Read are only descriptions as they are written here.

/// Weights of a code of at most eleven bits: 0 to 11.
const WEIGHTS: usize = 12;
/// log2 of the number of FSE states, the most that weights may have.
const LOG: u32 = 6;
const STATES: usize = 1 << LOG;

/// The description of a code whose symbols 0, 1, … have these weights; the last symbol that occurs is left out, as a reader
/// finds its weight itself. `None` where there is no description short enough.
pub(super) fn describe(weights: &[u8]) -> Option<Vec<u8>> {
    if weights.len() <= 128 {
        let mut described = vec![127 + weights.len() as u8];
        described.extend(weights.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)));
        return Some(described);
    }
    let coded = fse(weights)?;
    let length = u8::try_from(coded.len()).ok().filter(|&length| length < 128)?;
    Some([&[length], &coded[..]].concat())
}

/// The weights of a description, without the last one, and how many bytes it has; `None` if it is none of this form.
pub(super) fn read(description: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (&length, rest) = description.split_first()?;
    let length = usize::from(length);
    let (weights, used) = if length < 128 {
        (read_fse(rest.get(..length)?)?, length)
    } else {
        let used = (length - 127).div_ceil(2);
        let pairs = rest.get(..used)?.iter().flat_map(|pair| [pair >> 4, pair & 0xf]);
        (pairs.take(length - 127).collect(), used)
    };
    weights.iter().all(|&weight| usize::from(weight) < WEIGHTS).then_some((weights, 1 + used))
}

fn read_fse(coded: &[u8]) -> Option<Vec<u8>> {
    let mut bits = Unread { bytes: coded, first: 0, end: 8 * coded.len() };
    let frequencies = read_frequencies(&mut bits)?;
    let states = states(&frequencies);
    let mut bits = Unread { bytes: &coded[bits.first.div_ceil(8)..], first: 0, end: 0 };
    bits.end = 8 * (bits.bytes.len().checked_sub(1)?) + bits.bytes.last()?.checked_ilog2()? as usize;
    let mut turns = [bits.pop(LOG)?, bits.pop(LOG)?];
    let mut weights = Vec::new();
    while weights.len() < 255 {
        let state = states[turns[0]];
        weights.push(state.weight);
        let Some(number) = bits.pop(state.bits) else {
            weights.push(states[turns[1]].weight);
            return Some(weights);
        };
        turns = [turns[1], state.first + number];
    }
    None
}

/// The weights in FSE, with the frequencies before them.
fn fse(weights: &[u8]) -> Option<Vec<u8>> {
    let frequencies = frequencies(weights)?;
    let states = states(&frequencies);
    let mut bits = Bits::default();
    write_frequencies(&frequencies, &mut bits);
    let mut coded = bits.padded();
    // Two states take turns. A reader goes from the first weight to the last, so a writer goes from the last to the first. The
    // states that a reader ends in are those that need a bit more, so that it notices the end.
    let mut bits = Bits::default();
    let mut turns = [None; 2];
    for (number, &weight) in weights.iter().enumerate().rev() {
        let turn = &mut turns[number % 2];
        let mut of_weight = states.iter().enumerate().filter(|(_, state)| state.weight == weight);
        let (before, _) = match *turn {
            None => of_weight.max_by_key(|(_, state)| state.bits)?,
            Some(after) => {
                let reached = |state: &State| (state.first..state.first + (1 << state.bits)).contains(&after);
                let found = of_weight.find(|(_, state)| reached(state))?;
                bits.push((after - found.1.first) as u64, found.1.bits);
                found
            }
        };
        *turn = Some(before);
    }
    bits.push(turns[1]? as u64, LOG);
    bits.push(turns[0]? as u64, LOG);
    coded.extend(bits.closed());
    Some(coded)
}

/// How many of the states each weight gets; `None` if there is only one weight.
fn frequencies(weights: &[u8]) -> Option<[usize; WEIGHTS]> {
    let mut counts = [0_usize; WEIGHTS];
    weights.iter().for_each(|&weight| counts[usize::from(weight)] += 1);
    if counts.iter().filter(|&&count| count > 0).count() < 2 {
        return None;
    }
    let mut frequencies =
        counts.map(|count| if count == 0 { 0 } else { (count * STATES / weights.len()).max(1) });
    loop {
        let sum: usize = frequencies.iter().sum();
        let most = (0..WEIGHTS).max_by_key(|&weight| frequencies[weight])?;
        match sum.cmp(&STATES) {
            std::cmp::Ordering::Equal => return Some(frequencies),
            std::cmp::Ordering::Less => frequencies[most] += 1,
            std::cmp::Ordering::Greater => frequencies[most] -= 1,
        }
    }
}

/// RFC 8878, section 4.1.1.
fn write_frequencies(frequencies: &[usize; WEIGHTS], bits: &mut Bits) {
    bits.push(u64::from(LOG - 5), 4);
    let mut remaining = STATES + 1;
    let (mut threshold, mut width) = (STATES, LOG + 1);
    let mut weight = 0;
    while remaining > 1 {
        let frequency = frequencies[weight];
        weight += 1;
        let small = 2 * threshold - 1 - remaining;
        remaining -= frequency;
        let mut value = frequency + 1;
        if value >= threshold {
            value += small;
        }
        bits.push(value as u64, width - u32::from(value < small));
        if frequency == 0 {
            // How many more are zero, up to three at a time.
            let mut zeros = frequencies[weight..].iter().take_while(|&&frequency| frequency == 0).count();
            weight += zeros;
            while zeros >= 3 {
                bits.push(3, 2);
                zeros -= 3;
            }
            bits.push(zeros as u64, 2);
        }
        while remaining < threshold {
            threshold /= 2;
            width -= 1;
        }
    }
}

fn read_frequencies(bits: &mut Unread<'_>) -> Option<[usize; WEIGHTS]> {
    if bits.take(4)? != LOG as usize - 5 {
        return None;
    }
    let mut frequencies = [0; WEIGHTS];
    let mut remaining = STATES + 1;
    let (mut threshold, mut width) = (STATES, LOG + 1);
    let mut weight = 0;
    while remaining > 1 {
        let small = 2 * threshold - 1 - remaining;
        let mut value = bits.take(width - 1)?;
        if value >= small {
            value |= bits.take(1)? << (width - 1);
            if value >= threshold {
                value -= small;
            }
        }
        let frequency = value.checked_sub(1)?;
        remaining = remaining.checked_sub(frequency).filter(|&remaining| remaining > 0)?;
        *frequencies.get_mut(weight)? = frequency;
        weight += 1;
        if frequency == 0 {
            // How many more are zero, up to three at a time.
            loop {
                let zeros = bits.take(2)?;
                weight += zeros;
                if zeros < 3 {
                    break;
                }
            }
        }
        while remaining < threshold {
            threshold /= 2;
            width -= 1;
        }
    }
    Some(frequencies)
}

/// What a reader does in a state: it has a weight, and goes to state `first` plus the number in the next `bits` bits.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    weight: u8,
    first: usize,
    bits: u32,
}

fn states(frequencies: &[usize; WEIGHTS]) -> [State; STATES] {
    const STEP: usize = (STATES >> 1) + (STATES >> 3) + 3;
    let mut states = [State::default(); STATES];
    let mut place = 0;
    for (weight, &frequency) in frequencies.iter().enumerate() {
        for _ in 0..frequency {
            states[place].weight = weight as u8;
            place = (place + STEP) % STATES;
        }
    }
    let mut next = *frequencies;
    for state in &mut states {
        let number = next[usize::from(state.weight)];
        next[usize::from(state.weight)] += 1;
        state.bits = LOG - number.ilog2();
        state.first = (number << state.bits) - STATES;
    }
    states
}

/// Bits, each number's lowest one first.
#[derive(Debug, Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Bits in the last byte.
    used: u32,
}

impl Bits {
    fn push(&mut self, number: u64, count: u32) {
        for bit in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
                self.used = 0;
            }
            let last = self.bytes.last_mut().expect("a byte was pushed");
            *last |= ((number >> bit & 1) as u8) << self.used;
            self.used += 1;
        }
    }

    /// Up to a whole byte.
    fn padded(self) -> Vec<u8> {
        self.bytes
    }

    /// With the bit that shows a reader, who begins at the end, where that is.
    fn closed(mut self) -> Vec<u8> {
        self.push(1, 1);
        self.bytes
    }
}

/// Bits that can be read from both ends.
struct Unread<'a> {
    bytes: &'a [u8],
    first: usize,
    end: usize,
}

impl Unread<'_> {
    fn number(&self, first: usize, count: u32) -> usize {
        let bit = |bit: usize| usize::from(self.bytes[bit / 8] >> (bit % 8) & 1);
        (0..count as usize).map(|number| bit(first + number) << number).sum()
    }

    /// The first `count` bits.
    fn take(&mut self, count: u32) -> Option<usize> {
        let first = self.first;
        self.first += count as usize;
        (self.first <= self.end).then(|| self.number(first, count))
    }

    /// The last `count` bits.
    fn pop(&mut self, count: u32) -> Option<usize> {
        self.end = self.end.checked_sub(count as usize)?;
        Some(self.number(self.end, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_description_is_read_back(weights in prop::collection::vec(prop_oneof![4 => 0_u8..3, 1 => 0_u8..12], 1..256)) {
            if let Some(mut described) = describe(&weights) {
                let length = described.len();
                described.push(7);
                prop_assert_eq!(read(&described), Some((weights, length)));
            }
        }

        #[test]
        fn any_bytes_are_weights_or_none(bytes: Vec<u8>) {
            if let Some((weights, used)) = read(&bytes) {
                prop_assert!(weights.len() <= 256 && used <= bytes.len());
            }
        }
    }
}

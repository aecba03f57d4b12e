//! The share of the text that this process runs, from `--part i/n` or from a launcher's environment variables.
//!
//! Contexts are dealt like cards: part i gets every n-th context, beginning with the i-th. So every context belongs to
//! exactly one part, all parts have the same number of contexts (give or take one) however long the text turns out to be,
//! and each store is a sample of the whole text. The price is that each part tokenizes the whole text. Where a context
//! begins depends on the length in tokens of everything before it, so a part that packs the same contexts as a single run
//! cannot skip text. Tokenizing is much faster than running any language model on a CPU. Where it is not (with many GPUs),
//! token files cost next to nothing.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// Part `number` of `of`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: u64,
    pub(crate) of: u64,
}

/// The most parts of a text. (Their numbers times those of contexts are far from the end of 64 bits.)
const MOST_PARTS: u64 = 1 << 20;

/// What `--part` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartChoice {
    /// `off`: the whole text, whatever the environment says.
    Whole,
    Part(Part),
}

/// The variables in which launchers tell each process its rank, counted from 0, and the number of processes. A
/// launcher can have been started by another one; the inner ones come first.
const LAUNCHERS: [(&str, &str); 3] = [
    ("RANK", "WORLD_SIZE"),                           // torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), // mpirun
    ("SLURM_PROCID", "SLURM_NTASKS"),                 // srun
];

/// The part that this process runs and who says so; `None` is the whole text. The flag wins over `variable`s of the
/// environment.
///
/// # Errors
/// If a variable is not a number, or a rank is not below the number of ranks.
pub(crate) fn part(
    flag: Option<PartChoice>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<(Part, String)>> {
    match flag {
        Some(PartChoice::Whole) => return Ok(None),
        Some(PartChoice::Part(part)) => return Ok(Some((part, "--part".to_owned()))),
        None => {}
    }
    for (rank_name, size_name) in LAUNCHERS {
        let (Some(rank), Some(size)) = (variable(rank_name), variable(size_name)) else { continue };
        let number = |name: &str, text: &str| -> Result<u64> {
            text.trim().parse().ok().with_context(|| {
                format!(
                    "{name}={text} in the environment is not a number; --part i/n or --part off overrides it"
                )
            })
        };
        let (rank, of) = (number(rank_name, &rank)?, number(size_name, &size)?);
        if rank >= of {
            bail!(
                "{rank_name}={rank} and {size_name}={of} in the environment do not fit together; --part i/n or \
                 --part off wins over them"
            );
        }
        if of > MOST_PARTS {
            bail!("{size_name}={of} in the environment: a text has at most {MOST_PARTS} parts");
        }
        let part = Part { number: rank + 1, of };
        return Ok((of > 1).then(|| (part, format!("{rank_name} and {size_name}"))));
    }
    Ok(None)
}

impl FromStr for PartChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<PartChoice, String> {
        if text == "off" {
            return Ok(PartChoice::Whole);
        }
        let parts = text.split_once('/').and_then(|(number, of)| {
            let part = Part { number: number.parse().ok()?, of: of.parse().ok()? };
            (part.of <= MOST_PARTS && (1..=part.of).contains(&part.number)).then_some(part)
        });
        parts.map(PartChoice::Part).ok_or_else(|| {
            format!(
                "`{text}` is not a part; write 1/4 to 4/4 for the four parts of a text (of at most {MOST_PARTS}), or off"
            )
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// Which contexts of a text are run: from `first` on every `stride`-th one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Number in the text of the first context.
    pub(crate) first: u64,
    /// Distance to the next one.
    pub(crate) stride: u64,
}

impl Share {
    /// The share of `part` in the contexts that follow the first `skipped` ones.
    pub(crate) fn new(skipped: u64, part: Option<Part>) -> Share {
        match part {
            None => Share { first: skipped, stride: 1 },
            Some(Part { number, of }) => Share { first: skipped + number - 1, stride: of },
        }
    }

    /// How many of the `total` contexts that all parts run together belong to `part`.
    pub(crate) fn of_total(total: u64, part: Option<Part>) -> u64 {
        match part {
            None => total,
            Some(Part { number, of }) => (total + of).saturating_sub(number) / of,
        }
    }

    /// The number in the text of this share's context `index`.
    pub(crate) fn in_text(self, index: u64) -> u64 {
        self.first + index * self.stride
    }

    /// How many contexts the share has in a text of `total`.
    pub(crate) fn within(self, total: u64) -> u64 {
        total.saturating_sub(self.first).div_ceil(self.stride)
    }

    /// Whether the text's context `number` is in the share.
    pub(crate) fn has(self, number: u64) -> bool {
        number >= self.first && (number - self.first).is_multiple_of(self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_written_as_people_count() {
        assert_eq!("2/4".parse(), Ok(PartChoice::Part(Part { number: 2, of: 4 })));
        assert_eq!("off".parse(), Ok(PartChoice::Whole));
        for text in ["0/4", "5/4", "1", "a/b", "1/0", "", "18446744073709551615/18446744073709551615"] {
            assert!(text.parse::<PartChoice>().unwrap_err().contains("1/4"), "{text}");
        }
    }

    #[test]
    fn the_flag_beats_the_environment_and_inner_launchers_outer_ones() {
        let environment = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        let slurm = environment(&[("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4")]);
        let (found, from) = part(None, slurm).unwrap().unwrap();
        assert_eq!((found.to_string().as_str(), from.as_str()), ("3/4", "SLURM_PROCID and SLURM_NTASKS"));
        assert_eq!(part(Some(PartChoice::Whole), slurm).unwrap(), None);
        let flag = PartChoice::Part(Part { number: 1, of: 2 });
        assert_eq!(part(Some(flag), slurm).unwrap().unwrap().1, "--part");
        let both =
            environment(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1"), ("RANK", "1"), ("WORLD_SIZE", "2")]);
        assert_eq!(part(None, both).unwrap().unwrap().0.to_string(), "2/2");
        let alone = environment(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]);
        assert_eq!(part(None, alone).unwrap(), None);
        let many = environment(&[("RANK", "0"), ("WORLD_SIZE", "18446744073709551615")]);
        assert!(part(None, many).unwrap_err().to_string().contains("WORLD_SIZE"));
        let wrong = environment(&[("RANK", "2"), ("WORLD_SIZE", "2")]);
        assert!(part(None, wrong).unwrap_err().to_string().contains("WORLD_SIZE"));
    }

    #[test]
    fn the_parts_of_any_number_of_contexts_are_those_contexts() {
        for total in 0..30_u64 {
            for of in 1..8 {
                let mut all = Vec::new();
                for number in 1..=of {
                    let part = Some(Part { number, of });
                    let share = Share::new(5, part);
                    let mine: Vec<u64> =
                        (0..Share::of_total(total, part)).map(|index| share.in_text(index)).collect();
                    assert!(mine.iter().all(|&context| share.has(context)));
                    assert_eq!(share.within(5 + total), mine.len() as u64);
                    all.extend(mine);
                }
                all.sort_unstable();
                assert_eq!(all, (5..5 + total).collect::<Vec<_>>());
            }
        }
    }
}

//! Kills, failing disks and damaged files at random, for any length of time. Whatever happens to the two programs, repeating
//! the command ends with what an undisturbed run leaves, and no reader takes damaged files for sound ones.
//!
//! - `commands`: what is run. `kill`, `fault`, `damage`: what happens to it, and what must follow.
//! - `ground`: inputs, undisturbed results, the folder of a case. `process`: how a program ended. `contents`: what it left.
//! - `shim`, `shim.c`: a disk that fails on request.

mod commands;
mod contents;
mod damage;
mod fault;
mod ground;
mod kill;
mod process;
mod shim;
mod tally;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use ground::{Ground, Place};
use tally::{Counts, Failure, Tally};

/// A kind of case.
struct Kind {
    name: &'static str,
    /// Cases of this kind per round.
    share: u64,
    about: &'static str,
    happen: fn(&Place<'_>, &mut ChaCha8Rng, &mut Counts) -> Result<(), String>,
}

const KINDS: [Kind; 9] = [
    Kind { name: "kill", share: 6, about: "signals at random moments", happen: kill::at_any_moment },
    Kind { name: "call", share: 6, about: "signals at random calls on files", happen: kill::at_any_call },
    Kind {
        name: "power",
        share: 4,
        about: "killed at a random call; unflushed data is lost",
        happen: kill::power,
    },
    Kind { name: "fault", share: 12, about: "system calls that fail", happen: fault::of_a_call },
    Kind { name: "short", share: 2, about: "short and interrupted reads and writes", happen: fault::short },
    Kind { name: "full", share: 4, about: "too little space on the disk", happen: fault::full },
    Kind { name: "flip", share: 60, about: "a flipped bit, read by a program", happen: damage::flip },
    Kind { name: "spoil", share: 12, about: "a file cut, zeroed, removed, …", happen: damage::spoil },
    Kind {
        name: "store-flip",
        share: 1,
        about: "flipped bits, read by the library",
        happen: damage::flip_of_a_store,
    },
];

/// Kills the two programs, makes their disk fail and damages their files at random. Each case must end as if nothing had
/// happened, or with an error. The kinds of cases are kill, call, power, fault, short, full, flip, spoil and store-flip.
#[derive(Parser)]
struct Arguments {
    /// How long to run
    #[arg(default_value_t = 1.0)]
    minutes: f64,
    /// Run this many rounds instead, each with several cases of every kind
    #[arg(long)]
    rounds: Option<u64>,
    /// Seed of every random choice
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run only cases of this kind; repeatable
    #[arg(long, value_name = "KIND")]
    only: Vec<String>,
    /// Run only this case, by the name that a failure prints
    #[arg(long, value_name = "KIND:NUMBER")]
    case: Option<String>,
    /// Cases to run at once [default: one per core]
    #[arg(long)]
    jobs: Option<usize>,
    /// Print the counts as one JSON object
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cases = Cases::of(&arguments);
    let ground = Ground::prepare();
    let deadline = Instant::now() + Duration::from_secs_f64(60.0 * arguments.minutes);
    let (next, tallies) = (AtomicU64::new(0), Mutex::new(BTreeMap::<&str, Tally>::new()));
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for job in 0..jobs {
            let (ground, cases, next, tallies) = (&ground, &cases, &next, &tallies);
            scope.spawn(move || {
                let place = ground.place(&format!("job-{job}"));
                while let Some((kind, number)) = cases.at(next.fetch_add(1, Ordering::Relaxed), deadline) {
                    let mut counts = Counts::default();
                    let mut random = ChaCha8Rng::seed_from_u64(arguments.seed);
                    random.set_stream(number << 8 | kind.name.bytes().map(u64::from).sum::<u64>() & 0xff);
                    let result = (kind.happen)(&place, &mut random, &mut counts);
                    let mut tallies = tallies.lock().expect("no job panics while it counts");
                    let tally = tallies.entry(kind.name).or_default();
                    tally.cases += 1;
                    tally.counts.merge(&counts);
                    if let Err(why) = result {
                        let case = format!("{}:{number}", kind.name);
                        eprintln!(
                            "FAILED: {why}\n    again: scripts/soak --seed {} --case {case}",
                            arguments.seed
                        );
                        tally.failures.push(Failure { case, why });
                    }
                }
            });
        }
    });
    let tallies = tallies.into_inner().expect("no job panics while it counts");
    if arguments.json {
        println!("{}", tally::to_json(arguments.seed, &tallies));
    } else {
        print!("seed {}\n{}", arguments.seed, tally::table(&tallies));
    }
    let failed = tallies.values().any(|tally| !tally.failures.is_empty());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Which cases there are.
enum Cases {
    One(&'static Kind, u64),
    /// Of a round, in order; how many rounds, or until the time is over.
    Rounds(Vec<&'static Kind>, Option<u64>),
}

impl Cases {
    fn of(arguments: &Arguments) -> Cases {
        let named = |name: &str| -> &'static Kind {
            let names = || KINDS.map(|kind| format!("{} ({})", kind.name, kind.about)).join(", ");
            KINDS
                .iter()
                .find(|kind| kind.name == name)
                .unwrap_or_else(|| panic!("{name} is none of {}", names()))
        };
        if let Some(case) = &arguments.case {
            let (kind, number) = case.split_once(':').expect("a case is KIND:NUMBER");
            return Cases::One(named(kind), number.parse().expect("a case is KIND:NUMBER"));
        }
        let kinds: Vec<&Kind> = match arguments.only.is_empty() {
            true => KINDS.iter().collect(),
            false => arguments.only.iter().map(|name| named(name)).collect(),
        };
        // The kinds take turns, so that a run that ends early has tried them all.
        let longest = kinds.iter().map(|kind| kind.share).max().unwrap_or(1);
        let turns = |turn: u64| {
            let is_due =
                move |kind: &&'static Kind| (turn + 1) * kind.share / longest > turn * kind.share / longest;
            kinds.clone().into_iter().filter(is_due)
        };
        Cases::Rounds((0..longest).flat_map(turns).collect(), arguments.rounds)
    }

    /// The case `at`: its kind, and its number among those of the kind.
    fn at(&self, at: u64, deadline: Instant) -> Option<(&'static Kind, u64)> {
        match self {
            Cases::One(kind, number) => (at == 0).then_some((kind, *number)),
            Cases::Rounds(round, rounds) => {
                let (which, place) = (at / round.len() as u64, (at % round.len() as u64) as usize);
                let over = rounds.map_or_else(|| Instant::now() > deadline, |rounds| which >= rounds);
                let kind = round[place];
                let before = round[..place].iter().filter(|other| other.name == kind.name).count();
                (!over).then_some((kind, which * kind.share + before as u64))
            }
        }
    }
}

//! What the program that started this process says of it.

use thiserror::Error;

/// One of several processes that a launcher started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// This process' number.
    pub rank: usize,
    /// How many processes there are, at least 2.
    pub ranks: usize,
    /// This process' number among those on its machine, if that is said.
    pub local_rank: Option<usize>,
    /// Which one it is.
    pub launcher: Launcher,
    /// The variables that say so: `PMI_RANK and PMI_SIZE`.
    pub variables: String,
}

/// Programs that start several processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's mpirun.
    OpenMpi,
    /// MPICH's mpirun, those of its relatives (Intel MPI, MVAPICH, Cray's aprun and PALS), or srun with PMI.
    Pmi,
    /// srun with PMIx, which Open MPI speaks.
    Pmix,
    /// srun.
    Slurm,
    /// torchrun, or what sets its variables.
    Torchrun,
}

/// Variables that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{variables} in the environment do not say which process this is of how many: {values}")]
pub struct LauncherError {
    variables: String,
    values: String,
}

/// Launchers and the variables that they set: a process' number, and how many there are. One that starts processes for MPI is
/// believed before one that does not.
const LAUNCHERS: [(Launcher, &str, &str); 5] = [
    (Launcher::OpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    (Launcher::Pmi, "PMI_RANK", "PMI_SIZE"),
    // PMIx' own variables do not say how many there are.
    (Launcher::Pmix, "PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
    // Of a step, which srun makes. A batch script, which has variables of its job alone, is one process.
    (Launcher::Slurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    (Launcher::Torchrun, "RANK", "WORLD_SIZE"),
];

/// The variables in which launchers say a process' number among those on its machine.
const LOCAL_RANKS: [(Launcher, &[&str]); 5] = [
    (Launcher::OpenMpi, &["OMPI_COMM_WORLD_LOCAL_RANK"]),
    (Launcher::Pmi, &["MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"]),
    (Launcher::Pmix, &["SLURM_LOCALID"]),
    (Launcher::Slurm, &["SLURM_LOCALID"]),
    (Launcher::Torchrun, &["LOCAL_RANK"]),
];

/// What the environment says; None for a process alone.
///
/// # Errors
/// Variables that are no numbers, or that contradict each other.
pub fn launched(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launched>, LauncherError> {
    for (launcher, rank_name, size_name) in LAUNCHERS {
        let (Some(rank), Some(size)) = (variable(rank_name), variable(size_name)) else { continue };
        let variables = format!("{rank_name} and {size_name}");
        let numbers = rank.trim().parse::<usize>().ok().zip(size.trim().parse::<usize>().ok());
        let Some((rank, ranks)) = numbers.filter(|(rank, ranks)| rank < ranks) else {
            return Err(LauncherError { variables, values: format!("{rank} and {size}") });
        };
        if ranks == 1 {
            continue;
        }
        let first =
            |names: &[&str]| names.iter().filter_map(|name| variable(name)?.trim().parse().ok()).next();
        let own = LOCAL_RANKS.iter().find(|(of, _)| *of == launcher);
        let local_rank = own.and_then(|(_, names)| first(names)).filter(|local| *local < ranks);
        return Ok(Some(Launched { rank, ranks, local_rank, launcher, variables }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Option<Launched>, LauncherError> {
        let of =
            |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        launched(of)
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ];
        let found = with(&open_mpi).unwrap().unwrap();
        assert_eq!(found.local_rank, Some(1));
        assert_eq!((found.rank, found.ranks), (3, 4));
        assert_eq!(found.launcher, Launcher::OpenMpi);
        let found = with(&[("PMI_RANK", "0"), ("PMI_SIZE", "8"), ("MPI_LOCALRANKID", "0")]).unwrap().unwrap();
        assert_eq!((found.launcher, found.local_rank), (Launcher::Pmi, Some(0)));
        assert_eq!(found.variables, "PMI_RANK and PMI_SIZE");
        let torchrun = [("RANK", "1"), ("WORLD_SIZE", "2")];
        assert_eq!(with(&torchrun).unwrap().unwrap().launcher, Launcher::Torchrun);
        // mpirun within a step of Slurm.
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(with(&slurm).unwrap().unwrap().launcher, Launcher::Slurm);
        let both: Vec<_> = open_mpi.into_iter().chain(slurm).collect();
        assert_eq!(with(&both).unwrap().unwrap().launcher, Launcher::OpenMpi);
    }

    /// What Slurm 22.05 sets in the second of two processes of a step.
    const STEP: [(&str, &str); 5] = [
        ("SLURM_PROCID", "1"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_NTASKS", "2"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_TASKS_PER_NODE", "2"),
    ];

    #[test]
    fn interfaces_of_srun_are_told_apart() {
        let with_step = |variables: &[_]| with(&[&STEP, variables].concat()).unwrap().unwrap();
        let none = with_step(&[("SLURM_MPI_TYPE", "none")]);
        assert_eq!(none.launcher, Launcher::Slurm);
        let pmi2 = with_step(&[("PMI_FD", "13"), ("PMI_JOBID", "1.0"), ("PMI_RANK", "1"), ("PMI_SIZE", "2")]);
        assert_eq!((pmi2.launcher, pmi2.variables.as_str()), (Launcher::Pmi, "PMI_RANK and PMI_SIZE"));
        let pmix = with_step(&[("PMIX_NAMESPACE", "slurm.pmix.13.0"), ("PMIX_RANK", "1")]);
        assert_eq!(
            (pmix.launcher, pmix.variables.as_str()),
            (Launcher::Pmix, "PMIX_RANK and SLURM_STEP_NUM_TASKS")
        );
        for found in [none, pmi2, pmix] {
            assert_eq!((found.rank, found.ranks, found.local_rank), (1, 2, Some(1)));
        }
    }

    #[test]
    fn one_process_is_alone_whoever_started_it() {
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]), Ok(None));
        // A batch script that has not called srun yet.
        assert_eq!(with(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]), Ok(None));
    }

    #[test]
    fn variables_that_make_no_sense_are_told() {
        let told = with(&[("RANK", "4"), ("WORLD_SIZE", "4")]).unwrap_err().to_string();
        assert!(
            told.starts_with("RANK and WORLD_SIZE in the environment") && told.ends_with("4 and 4"),
            "{told}"
        );
        assert!(with(&[("PMI_RANK", "x"), ("PMI_SIZE", "4")]).is_err());
    }
}

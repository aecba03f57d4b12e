//! One minute of `scripts/soak`.

use end_to_end::program;

#[test]
fn kills_faults_and_damage_end_as_undisturbed_or_refused() {
    let run = program("examples/soak").args(["--rounds", "2", "--seed", "1"]).output();
    let run: end_to_end::Run = run.expect("the soak starts").into();
    println!("{}", run.stdout);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

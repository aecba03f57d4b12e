//! Completions and man pages: what a shell and `man` make of them.

use std::fs;
use std::process::Command;

use end_to_end::program;

/// What bash offers after `words`, the last of which is being typed.
fn bash_offers(name: &str, words: &[&str]) -> Vec<String> {
    let script = program(name).args(["completions", "bash"]).output().unwrap();
    assert!(script.status.success());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("completions"), script.stdout).unwrap();
    let call = format!(
        "source completions; COMP_WORDS=({}); COMP_CWORD={}; \
         $(complete -p {name} | sed 's/.* -F \\([^ ]*\\).*/\\1/') {name} \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        words.len() - 1
    );
    let output = Command::new("bash").args(["-c", &call]).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn bash_completes_subcommands_flags_and_values() {
    assert_eq!(bash_offers("sae-trainer", &["sae-trainer", "swe"]), ["sweep"]);
    assert_eq!(bash_offers("sae-trainer", &["sae-trainer", "push", "--repl"]), ["--replace-card"]);
    assert!(bash_offers("sae-trainer", &["sae-trainer", "--l0-co"]).contains(&"--l0-coefficient".to_owned()));
    assert_eq!(bash_offers("activation-dump", &["activation-dump", "imp"]), ["import"]);
    assert_eq!(
        bash_offers("activation-dump", &["activation-dump", "import", "--from", "sae"]),
        ["sae-lens", "saev"]
    );
}

#[test]
fn every_shell_has_completions() {
    for name in ["sae-trainer", "activation-dump"] {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let output = program(name).args(["completions", shell]).output().unwrap();
            assert!(output.status.success() && output.stdout.len() > 1000, "{name} {shell}");
        }
        assert!(!program(name).args(["completions", "sh"]).output().unwrap().status.success());
    }
}

#[test]
fn there_is_a_page_for_every_command_and_it_renders_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    for name in ["sae-trainer", "activation-dump"] {
        assert!(program(name).arg("man-pages").arg(&pages).status().unwrap().success());
    }
    for page in
        ["sae-trainer", "sae-trainer-sweep", "sae-trainer-push", "activation-dump", "activation-dump-import"]
    {
        let path = pages.join(format!("{page}.1"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH OPTIONS"), "{page}");
        // Where there is a program that reads them.
        if let Ok(output) =
            Command::new("groff").args(["-man", "-ww", "-z", "-Tutf8", "-K", "utf8"]).arg(&path).output()
        {
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && told.is_empty(), "{page}: {told}");
        }
    }
}

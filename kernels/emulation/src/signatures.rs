//! Names of kernels and of their parameters, read off the `.cu` files.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use kernels::cuda::sources::KERNELS;

/// The names of the `extern "C" __global__` functions of a file.
pub(crate) fn kernel_names(text: &str) -> Vec<String> {
    signatures(text).into_iter().map(|(name, _)| name).collect()
}

/// The names of a kernel's parameters.
pub(crate) fn parameters(kernel: &str) -> &'static [String] {
    static KNOWN: OnceLock<BTreeMap<String, Vec<String>>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| KERNELS.iter().flat_map(|source| signatures(source.text)).collect());
    known.get(kernel).map(Vec::as_slice).unwrap_or_default()
}

/// The `extern "C" __global__` functions of a file and their parameters' names. A function whose name ends with
/// `##CHUNKS` stands for one per `KERNELS(…)` below it.
fn signatures(text: &str) -> Vec<(String, Vec<String>)> {
    let mut signatures = Vec::new();
    for part in text.split("extern \"C\" __global__ void").skip(1) {
        let blank = |c: char| c.is_whitespace() || c == '\\';
        let mut rest = part.trim_start_matches(blank);
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            rest = bounds.split_once(')').unwrap().1.trim_start_matches(blank);
        }
        let (name, rest) = rest.split_once('(').unwrap();
        let declarations = rest.split_once(')').unwrap().0.split(',');
        let last_word = |declaration: &str| {
            let name = declaration.trim_matches(blank).rsplit(|c: char| c.is_whitespace() || c == '*').next();
            name.unwrap().to_owned()
        };
        let parameters: Vec<String> = declarations.map(last_word).collect();
        match name.trim().strip_suffix("##CHUNKS") {
            None => signatures.push((name.trim().to_owned(), parameters)),
            Some(stem) => {
                let uses = text.lines().filter_map(|line| line.strip_prefix("KERNELS("));
                let number = |rest: &str| rest.split([',', ')']).next().unwrap().to_owned();
                let named = uses.map(|rest| (format!("{stem}{}", number(rest)), parameters.clone()));
                signatures.extend(named);
            }
        }
    }
    signatures
}

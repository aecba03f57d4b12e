//! The keys of a profile in `~/.aws`, as AWS' own tools keep them. Whatever is in the environment comes before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use super::failure::Failure;

/// Variables that say where credentials come from; with one of them, no file is read.
const IN_ENVIRONMENT: [&str; 6] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];

/// The builder with the keys, the region and the server of the profile `AWS_PROFILE`, or `default`, where the environment has none.
///
/// # Errors
/// A profile that `AWS_PROFILE` names and that is not there, or gets its keys from a program.
pub(super) fn with_profile(builder: AmazonS3Builder) -> Result<AmazonS3Builder, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if IN_ENVIRONMENT.iter().any(|name| variable(name).is_some()) {
        return Ok(builder);
    }
    let file = |name: &str, default: &str| {
        let home = || Some(Path::new(&variable("HOME")?).join(".aws").join(default));
        let path = variable(name).map(PathBuf::from).or_else(home)?;
        std::fs::read_to_string(path).ok()
    };
    let asked = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
    let name = asked.as_deref().unwrap_or("default");
    let mut settings = BTreeMap::new();
    for text in [file("AWS_CONFIG_FILE", "config"), file("AWS_SHARED_CREDENTIALS_FILE", "credentials")]
        .into_iter()
        .flatten()
    {
        settings.extend(profile(&text, name));
    }
    if asked.is_some() && settings.is_empty() {
        return Err(Failure::refused(format!(
            "there is no profile {name}, which AWS_PROFILE names, in ~/.aws"
        )));
    }
    let has_keys = settings.contains_key("aws_access_key_id");
    let from_elsewhere = ["sso_session", "sso_start_url", "role_arn", "credential_process"];
    if !has_keys && from_elsewhere.iter().any(|key| settings.contains_key(*key)) {
        return Err(Failure::refused(format!(
            "the profile {name} in ~/.aws gets its keys from elsewhere; eval \"$(aws configure export-credentials --format env)\" \
             puts them into the environment"
        )));
    }
    let taken = [
        ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
        ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
        ("aws_session_token", AmazonS3ConfigKey::Token),
        ("region", AmazonS3ConfigKey::Region),
        ("endpoint_url", AmazonS3ConfigKey::Endpoint),
    ];
    Ok(taken.into_iter().fold(builder, |builder, (key, config)| match settings.get(key) {
        Some(value) if builder.get_config_value(&config).is_none() => builder.with_config(config, value),
        _ => builder,
    }))
}

/// The settings of `[name]` or `[profile name]`.
fn profile(text: &str, name: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut inside = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(header) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let header = header.trim();
            inside = header.strip_prefix("profile ").map_or(header, str::trim) == name;
        } else if inside
            // What is indented belongs to the setting above.
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((key, value)) = trimmed.split_once('=')
        {
            settings.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_its_section_alone() {
        let text = "[default]\nregion = eu-west-1\n# region = x\n\n[profile work]\naws_access_key_id=AKIA=\ns3 =\n  region = y\n[other]\nregion=z\n";
        let keys = |name: &str| profile(text, name).into_iter().collect::<Vec<_>>();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(keys("default"), [pair("region", "eu-west-1")]);
        assert_eq!(keys("work"), [pair("aws_access_key_id", "AKIA="), pair("s3", "")]);
        assert_eq!(keys("none"), []);
    }
}

//! The pages themselves: one page that shows what its address asks for, its style and its scripts.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use terminal::foreign_path;

/// The page.
pub(super) const INDEX: &str = "index.html";

const PAGE: &str = include_str!("site/index.html");
const STYLE: (&str, &str) = ("style.css", include_str!("site/style.css"));
/// In the order in which they run.
const SCRIPTS: [(&str, &str); 10] = [
    ("echarts.js", include_str!("site/vendor/echarts.common.min.js")),
    ("data.js", include_str!("site/data.js")),
    ("elements.js", include_str!("site/elements.js")),
    ("charts.js", include_str!("site/charts.js")),
    ("overview.js", include_str!("site/overview.js")),
    ("browser.js", include_str!("site/browser.js")),
    ("excerpts.js", include_str!("site/excerpts.js")),
    ("feature.js", include_str!("site/feature.js")),
    ("contexts.js", include_str!("site/contexts.js")),
    ("main.js", include_str!("site/main.js")),
];
/// The terms of the chart library, which go where it goes.
const NOTICES: [(&str, &str); 2] = [
    ("echarts.LICENSE", include_str!("site/vendor/echarts.LICENSE")),
    ("echarts.NOTICE", include_str!("site/vendor/echarts.NOTICE")),
];
/// Where the page has its style and its scripts.
const HEAD: &str = "<!-- style -->";
const BODY: &str = "<!-- scripts -->";

/// Writes the pages into a report's folder, and returns their size in bytes.
pub(super) fn write(folder: &Path) -> Result<u64> {
    let scripts: String =
        SCRIPTS.iter().map(|(name, _)| format!("<script src=\"{name}\"></script>\n")).collect();
    let style = format!("<link rel=\"stylesheet\" href=\"{}\">", STYLE.0);
    let page = page(&style, &scripts);
    let mut bytes = 0;
    let files = SCRIPTS.into_iter().chain(NOTICES).chain([STYLE, (INDEX, &page)]);
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", foreign_path(&path)))?;
        bytes += text.len() as u64;
    }
    Ok(bytes)
}

/// One page with everything in it, data included.
pub(super) fn single_file(data: &[(String, String)]) -> String {
    let mut scripts = String::new();
    for (name, text) in data {
        writeln!(scripts, "<script type=\"text/plain\" id=\"data-{name}\">{text}</script>")
            .expect("text can be written");
    }
    for (name, text) in NOTICES {
        writeln!(scripts, "<!-- {name}\n{} -->", text.replace("--", "- -")).expect("text can be written");
    }
    for (_, text) in SCRIPTS {
        writeln!(scripts, "<script>\n{text}\n</script>").expect("text can be written");
    }
    page(&format!("<style>\n{}\n</style>", STYLE.1), &scripts)
}

fn page(style: &str, scripts: &str) -> String {
    let (head, rest) = PAGE.split_once(HEAD).expect("the page has a place for its style");
    let (body, end) = rest.split_once(BODY).expect("the page has a place for its scripts");
    [head, style, body, scripts, end].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_script_ends_early_where_it_is_inside_the_page() {
        for (name, text) in SCRIPTS {
            assert!(!text.to_lowercase().contains("</script"), "{name}");
        }
        assert!(!STYLE.1.contains("</"));
        let page = single_file(&[("overview".to_owned(), "abc".to_owned())]);
        assert_eq!(page.matches("</script>").count(), SCRIPTS.len() + 1);
        assert!(page.contains("<script type=\"text/plain\" id=\"data-overview\">abc</script>"));
    }
}

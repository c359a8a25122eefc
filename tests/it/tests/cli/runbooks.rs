//! The runbooks name commands that the binary takes.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::{OK, USAGE, run_in};

/// The commands of a page: lines of code blocks, and code within a line.
fn commands(page: &str) -> Vec<Vec<&str>> {
    let spans = page.lines().flat_map(|line| match line.contains('`') {
        true => line.split('`').skip(1).step_by(2).collect(),
        false => vec![line],
    });
    let ours = spans.filter_map(|span| span.strip_prefix("expediter "));
    ours.map(|span| {
        let bare = span.split(" # ").next().unwrap_or_default();
        bare.split_whitespace().collect()
    })
    .collect()
}

#[tokio::test]
async fn the_commands_of_the_runbooks_are_taken() -> Result<()> {
    let dir = TempDir::new()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = 0;
    for page in fs::read_dir(root.join("ops/docs/runbooks"))? {
        let page = page?.path();
        let text = fs::read_to_string(&page)?;
        for command in commands(&text) {
            // What is wrong before it is told instead of the help.
            let args: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
            let ran = run_in(dir.path(), &args, b"").await?;
            ensure!(ran.code == OK, "{}: {command:?}: {ran:#?}", page.display());
            found += 1;
        }
    }
    ensure!(found > 20, "only {found} commands");
    for wrong in [
        "merchant lst",
        "merchant list --waitin",
        "outcome tail --kind late",
    ] {
        let page = format!("`expediter {wrong}`");
        let commands = commands(&page);
        let args: Vec<&str> = commands[0].iter().copied().chain(["--help"]).collect();
        run_in(dir.path(), &args, b"").await?.exits(USAGE)?;
    }
    Ok(())
}

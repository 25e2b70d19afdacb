//! `ballast --help`: the commands in groups, by what one comes for.

use std::fmt::Write as _;

use clap::{Command, Parser};

/// Heading and commands of each group; every command is in one.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Run", &["up", "pause", "resume", "stop"]),
    ("See how it goes", &["status", "watch", "actors", "checkpoints", "plot", "replay"]),
    ("Steer it", &["schedule", "settings", "set", "checkpoint", "evaluate"]),
    ("Look into it", &["trajectories", "trajectory", "quarantine", "lengths", "audit"]),
];

const EXAMPLES: &str = "\
Examples:
  ballast up --config examples/market/quickstart.toml   run a whole cluster on this machine
  ballast watch                                         follow the newest run
  ballast schedule                                      where training is, why, and what ends it
  ballast set rl.learning_rate=1e-5 --reason \"KL grows\" change it; `ballast audit` remembers who
  ballast trajectories --failed                         what went wrong; `ballast trajectory N`
  ballast COMMAND --help                                examples of one command";

/// Parses the command line of this process; ends it where there is only help or a fault to show.
pub(crate) fn parse<P: Parser>() -> P {
    let command = grouped(P::command());
    let matches = command.get_matches();
    P::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// clap lists all commands under one heading; this puts our list in its place.
fn grouped(command: Command) -> Command {
    let mut list = String::new();
    for (heading, names) in GROUPS {
        writeln!(list, "{heading}:").expect("writing to a String cannot fail");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            writeln!(list, "  {name:<13} {about}").expect("writing to a String cannot fail");
        }
        list.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}"
    );
    command.help_template(template).after_help(EXAMPLES).disable_help_subcommand(true)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn every_command_is_in_one_group_and_has_an_example() {
        let command = Cli::command();
        let mut grouped: Vec<&str> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let mut all: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
        let nested = command.get_subcommands().flat_map(Command::get_subcommands);
        for one in command.get_subcommands().chain(nested) {
            let help = one.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = one.get_name();
            assert!(help.starts_with("Example") && help.contains("  ballast "), "{name}: {help}");
        }
        command.debug_assert();
    }

    #[test]
    fn the_list_is_part_of_the_help() {
        let help = grouped(Cli::command()).render_help().to_string();
        for expected in ["Steer it:\n  schedule      Show where", "Usage: ballast", "Examples:"] {
            assert!(help.contains(expected), "{expected} is not in\n{help}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}

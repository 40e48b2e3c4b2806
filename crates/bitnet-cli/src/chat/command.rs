//! What a user can ask of the chat itself.

use anyhow::bail;

/// What `/help` prints.
pub(super) const HELP: &str = "\
/help         this text
/clear        forget the conversation, but for the instructions
/system TEXT  set the instructions in front of the conversation; without TEXT, remove them
/save FILE    write the conversation as JSON
/stats        speed of the last answer, and how full the context is
/exit         leave, as Ctrl-D does
A line that ends with \\ goes on in the next. Text that begins with / is sent when a space stands before it.
";

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Help,
    Clear,
    System(&'a str),
    Save(&'a str),
    Stats,
    Exit,
}

impl<'a> Command<'a> {
    /// The command in a message; `None` for text that is for the model.
    pub(super) fn parse(message: &'a str) -> Option<anyhow::Result<Self>> {
        let command = message.strip_prefix('/')?.trim_end();
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        Some(Self::named(name, argument.trim()))
    }

    fn named(name: &str, argument: &'a str) -> anyhow::Result<Self> {
        let command = match name {
            "help" => Command::Help,
            "clear" => Command::Clear,
            "system" => return Ok(Command::System(argument)),
            "save" if argument.is_empty() => bail!("/save needs the name of a file"),
            "save" => return Ok(Command::Save(argument)),
            "stats" => Command::Stats,
            "exit" => Command::Exit,
            _ => bail!("there is no command /{name}; /help lists those there are"),
        };
        if !argument.is_empty() {
            bail!("/{name} takes nothing behind it");
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_begin_with_a_slash_and_text_does_not() {
        assert!(Command::parse("hello /help").is_none());
        assert!(Command::parse(" /help").is_none());
        assert_eq!(Command::parse("/help ").unwrap().unwrap(), Command::Help);
        assert_eq!(Command::parse("/system  Be brief. ").unwrap().unwrap(), Command::System("Be brief."));
        assert_eq!(Command::parse("/system").unwrap().unwrap(), Command::System(""));
        assert_eq!(Command::parse("/save a b.json").unwrap().unwrap(), Command::Save("a b.json"));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for message in ["/", "/nonsense", "/save", "/exit now"] {
            assert!(Command::parse(message).unwrap().is_err(), "{message}");
        }
    }
}

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
pub(super) enum ChatCommand<'a> {
    Help,
    Clear,
    System(&'a str),
    Save(&'a str),
    Stats,
    Exit,
}

impl<'a> ChatCommand<'a> {
    /// The command in a message; `None` for text that is for the model.
    pub(super) fn parse(message: &'a str) -> Option<anyhow::Result<Self>> {
        let command = message.strip_prefix('/')?.trim_end();
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        Some(Self::named(name, argument.trim()))
    }

    fn named(name: &str, argument: &'a str) -> anyhow::Result<Self> {
        let command = match name {
            "help" => ChatCommand::Help,
            "clear" => ChatCommand::Clear,
            "system" => return Ok(ChatCommand::System(argument)),
            "save" if argument.is_empty() => bail!("/save needs the name of a file"),
            "save" => return Ok(ChatCommand::Save(argument)),
            "stats" => ChatCommand::Stats,
            "exit" => ChatCommand::Exit,
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
        assert!(ChatCommand::parse("hello /help").is_none());
        assert!(ChatCommand::parse(" /help").is_none());
        assert_eq!(ChatCommand::parse("/help ").unwrap().unwrap(), ChatCommand::Help);
        assert_eq!(
            ChatCommand::parse("/system  Be brief. ").unwrap().unwrap(),
            ChatCommand::System("Be brief.")
        );
        assert_eq!(ChatCommand::parse("/system").unwrap().unwrap(), ChatCommand::System(""));
        assert_eq!(ChatCommand::parse("/save a b.json").unwrap().unwrap(), ChatCommand::Save("a b.json"));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for message in ["/", "/nonsense", "/save", "/exit now"] {
            assert!(ChatCommand::parse(message).unwrap().is_err(), "{message}");
        }
    }
}

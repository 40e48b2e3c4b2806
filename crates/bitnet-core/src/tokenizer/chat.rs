//! Chat templates: from a list of messages to the one string that the model was trained on.
//!
//! Models bring their format as a Jinja program written for Python. It runs here with Python's string methods, and
//! on a budget, because it comes with a file from a stranger.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use super::Tokenizer;
use crate::{Error, Result};

/// Steps that a template may take, and more for every message. Real ones take some dozens a message.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 10_000;
/// Bytes that a template may write besides the messages.
const MAX_EXTRA_OUTPUT: usize = 1 << 20;
/// How often a template may write out each message.
const MAX_REPEATS: usize = 4;

/// The format of BitNet b1.58 2B4T: role and text of each message, each ended by the end-of-turn token.
const BITNET_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {{ message.role | capitalize }}: {{ message.content | trim }}<|eot_id|>{% endfor %}\
    {% if add_generation_prompt %}Assistant: {% endif %}";
/// Occurs in the template of some published BitNet files, which is not the one that the model was trained with.
const WRONG_BITNET_MARK: &str = "BITNETAssistant";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A compiled template with the special tokens it may use.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// The template for a model, and what to tell the user about the choice.
#[derive(Debug)]
pub struct ChosenTemplate {
    /// The template.
    pub template: ChatTemplate,
    /// Set where the file's own template was not taken.
    pub notice: Option<String>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let mut environment = Environment::new();
        // As the reference renders them: a line that is only a block leaves nothing behind.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| template_error(&e))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| template_error(&e))?;
        Ok(ChatTemplate { environment, bos_token: bos_token.to_owned(), eos_token: eos_token.to_owned() })
    }

    /// The format that the models of an architecture are known to be trained with.
    ///
    /// `architecture` is that of a GGUF file or the `model_type` of a configuration. Models of the BitNet
    /// architectures without the end-of-turn token are older and know no chat.
    pub fn known_good(
        architecture: &str,
        tokenizer: &Tokenizer,
        bos_token: &str,
        eos_token: &str,
    ) -> Option<Result<Self>> {
        let knows_chat = architecture.starts_with("bitnet") && tokenizer.token_to_id("<|eot_id|>").is_some();
        knows_chat.then(|| Self::new(BITNET_TEMPLATE, bos_token, eos_token))
    }

    /// The file's own template, unless it has none or one that is known to be wrong; then the known good one.
    ///
    /// `None` means that the model has no chat format.
    pub fn choose(
        source: Option<&str>,
        architecture: &str,
        tokenizer: &Tokenizer,
        bos_token: &str,
        eos_token: &str,
    ) -> Result<Option<ChosenTemplate>> {
        let wrong = source.is_some_and(|source| source.contains(WRONG_BITNET_MARK));
        if let Some(source) = source.filter(|_| !wrong) {
            let template = Self::new(source, bos_token, eos_token)?;
            return Ok(Some(ChosenTemplate { template, notice: None }));
        }
        let Some(template) = Self::known_good(architecture, tokenizer, bos_token, eos_token) else {
            // A wrong template of a model that is not known is all there is.
            let own = source.map(|source| Self::new(source, bos_token, eos_token)).transpose()?;
            return Ok(own.map(|template| ChosenTemplate { template, notice: None }));
        };
        let notice = if wrong {
            "the file's chat template is known to be wrong; using the one that the model was trained with"
        } else {
            "the file has no chat template; using the one that models of its kind were trained with"
        };
        Ok(Some(ChosenTemplate { template: template?, notice: Some(notice.to_owned()) }))
    }

    /// The prompt for a conversation; with `add_generation_prompt` it ends where the model is to answer.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64));
        let template = environment.get_template(NAME).map_err(|e| template_error(&e))?;
        let sent: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let mut output = Capped { bytes: Vec::new(), limit: MAX_EXTRA_OUTPUT + MAX_REPEATS * sent };
        let variables = context! {
            messages => Serde(messages),
            add_generation_prompt,
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
            tools => (),
            documents => (),
        };
        template.render_captured_to(variables, &mut output).map_err(|e| template_error(&e))?;
        String::from_utf8(output.bytes).map_err(|e| Error::ChatTemplate(e.to_string()))
    }
}

/// A buffer that refuses to grow past its limit.
struct Capped {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("it writes more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The message with those of its causes, which is where a template's own complaint is.
fn template_error(error: &minijinja::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    Error::ChatTemplate(text)
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as Python's `json.dumps(x, ensure_ascii=False)` writes it, with blanks after `,` and `:`.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let wrong = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut json = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let format = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, format)).map_err(wrong)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)).map_err(wrong)?
        }
    }
    String::from_utf8(json).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The date of today (UTC), as templates with a "today is" line ask for it.
fn strftime_now(format: &str) -> std::result::Result<String, minijinja::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(format, now).map_err(|code| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know `%{code}`"))
    })
}

/// Formats `seconds` since 1970; an unknown code is the error.
fn strftime(format: &str, seconds: u64) -> std::result::Result<String, char> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    // 1 January 1970 was a Thursday.
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text += &match chars.next().unwrap_or('%') {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'B' => month_name.to_owned(),
            'b' => month_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'H' => format!("{:02}", time / 3600),
            'M' => format!("{:02}", time / 60 % 60),
            'S' => format!("{:02}", time % 60),
            '%' => "%".to_owned(),
            other => return Err(other),
        };
    }
    Ok(text)
}

/// Year, month (1 to 12) and day of a number of days since 1970.
fn civil_date(mut days: u64) -> (u64, usize, u64) {
    let mut year = 1970;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    loop {
        let length = 365 + u64::from(is_leap(year));
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[(&str, &str)]) -> Result<String> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|&(role, content)| Message { role: role.to_owned(), content: content.to_owned() })
            .collect();
        ChatTemplate::new(source, "<s>", "</s>")?.render(&messages, true)
    }

    #[test]
    fn python_methods_and_loop_controls_work() {
        let source = "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}\
            {% if m.content.startswith('skip') %}{% continue %}{% endif %}\
            [{{ m['role'].upper() }}|{{ m.content.strip().split(',')[-1] }}|{{ m.get('name', 'nobody') }}]{% endfor %}\
            {% for key, value in {'a': 1}.items() %}{{ key }}={{ value }}{% endfor %}";
        let messages = [("user", " x,y "), ("user", "skip me"), ("user", "never")];
        assert_eq!(render(source, &messages).unwrap(), "[USER|y|nobody]a=1");
    }

    #[test]
    fn a_line_that_is_only_a_block_leaves_nothing_behind() {
        let source = "{%- for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\nend\n";
        assert_eq!(render(source, &[("user", "hi")]).unwrap(), "hi\nend");
    }

    #[test]
    fn namespaces_keep_their_value_across_a_loop() {
        let source = "{% set ns = namespace(system='none') %}{% for m in messages %}{% if m.role == 'system' %}\
            {% set ns.system = m.content %}{% endif %}{% endfor %}{{ ns.system }}{{ bos_token }}{{ eos_token }}";
        assert_eq!(render(source, &[("user", "u"), ("system", "s")]).unwrap(), "s<s></s>");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let source =
            "{{ {'k': [1, 'é<\\n'], 'o': {}, 'n': none} | tojson }} {{ messages | tojson(indent=2) }}";
        let expected = "{\"k\": [1, \"é<\\n\"], \"o\": {}, \"n\": null} [\n  {\n    \"role\": \"user\",\n    \"content\": \"hi\"\n  }\n]";
        assert_eq!(render(source, &[("user", "hi")]).unwrap(), expected);
    }

    #[test]
    fn absent_tools_are_none_and_absent_names_are_undefined() {
        let source =
            "{% if tools is none and documents is none and date_string is not defined %}ok{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "ok");
    }

    #[test]
    fn a_template_may_refuse_a_conversation() {
        let source =
            "{% if messages[0].role != 'user' %}{{ raise_exception('must start with the user') }}{% endif %}";
        let message = render(source, &[("assistant", "hi")]).unwrap_err().to_string();
        assert!(message.contains("must start with the user"), "{message}");
    }

    #[test]
    fn a_broken_template_is_refused_when_it_is_compiled() {
        assert!(matches!(ChatTemplate::new("{% for %}", "", ""), Err(Error::ChatTemplate(_))));
    }

    #[test]
    fn endless_work_and_endless_output_end_with_an_error() {
        let nested = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
        assert!(render(nested, &[]).unwrap_err().to_string().contains("fuel"));
        let long = "{% for a in range(2000) %}{{ 'x' * 1000 }}{% endfor %}";
        assert!(render(long, &[]).unwrap_err().to_string().contains("writes more than"));
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(render(recursive, &[]).is_err());
    }

    #[test]
    fn dates_follow_the_calendar() {
        let at = |format: &str, seconds| strftime(format, seconds).unwrap();
        assert_eq!(at("%A, %d %B %Y", 0), "Thursday, 01 January 1970");
        assert_eq!(at("%d %b %y %H:%M:%S %%", 951_782_399), "28 Feb 00 23:59:59 %");
        assert_eq!(at("%a %Y-%m-%d", 951_782_400), "Tue 2000-02-29");
        assert_eq!(at("%Y-%m-%d", 1_735_689_599), "2024-12-31");
        assert_eq!(strftime("%Q", 0), Err('Q'));
        let today = render("{{ strftime_now('%Y') }}", &[]).unwrap();
        assert!(today.parse::<u32>().unwrap() >= 2025);
    }

    #[test]
    fn a_template_known_to_be_wrong_is_replaced_with_a_notice() {
        let with_tokens = |added: &str| {
            let json = format!(
                r#"{{"added_tokens": [{added}], "decoder": {{"type": "ByteLevel"}},
                    "model": {{"type": "BPE", "vocab": {{"a": 0}}, "merges": []}}}}"#
            );
            Tokenizer::from_json(json.as_bytes(), std::path::Path::new("tokenizer.json")).unwrap()
        };
        let chat = with_tokens(r#"{"id": 1, "content": "<|eot_id|>", "special": true}"#);
        let plain = with_tokens("");
        let wrong = "{% for m in messages %}Human: {{ m.content }}\n\nBITNETAssistant: {% endfor %}";
        let choose = |source, architecture, tokenizer| {
            ChatTemplate::choose(source, architecture, tokenizer, "<b>", "<e>").unwrap()
        };
        let hi = [Message { role: "user".to_owned(), content: " hi ".to_owned() }];

        let chosen = choose(Some(wrong), "bitnet-b1.58", &chat).unwrap();
        assert_eq!(chosen.template.render(&hi, true).unwrap(), "<b>User: hi<|eot_id|>Assistant: ");
        assert!(chosen.notice.unwrap().contains("wrong"));
        let chosen = choose(None, "bitnet-25", &chat).unwrap();
        assert_eq!(chosen.template.render(&hi, false).unwrap(), "<b>User: hi<|eot_id|>");
        let chosen = choose(Some("own"), "bitnet-25", &chat).unwrap();
        assert_eq!((chosen.template.render(&hi, true).unwrap().as_str(), chosen.notice), ("own", None));
        assert!(choose(None, "bitnet", &plain).is_none());
        assert!(choose(None, "llama", &chat).is_none());
    }
}

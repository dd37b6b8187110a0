//! Chat templates: the Jinja text that comes with a model and turns messages into its prompt, rendered as the Hugging Face
//! library does. Offers no tools and asks reasoning models for the answer alone.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use rowmill_jobs::{Error, Result};

/// A model's chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    /// Whether it takes a message of the role `system`.
    takes_system: bool,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Parses a template. `bos_token` and `eos_token` are empty for models that have none.
    pub(crate) fn new(source: String, bos_token: &str, eos_token: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            let mut text = String::new();
            // A format the clock library does not know leaves the text empty; the date is decoration in a prompt.
            let _ = std::fmt::write(&mut text, format_args!("{}", chrono::Local::now().format(&format)));
            text
        });
        environment.add_template_owned(NAME, source).map_err(failed)?;
        let (bos_token, eos_token) = (bos_token.to_owned(), eos_token.to_owned());
        let mut template = Self { environment, bos_token, eos_token, takes_system: true };
        template.takes_system =
            template.render(&[("system", "x"), ("user", "x")], true).is_ok_and(|text| text.contains('x'));
        Ok(template)
    }

    /// The prompt for one user message, ready for the answer.
    pub(crate) fn prompt(&self, system: Option<&str>, user: &str) -> Result<String> {
        match system {
            None => self.render(&[("user", user)], true),
            Some(system) if self.takes_system => self.render(&[("system", system), ("user", user)], true),
            Some(system) => self.render(&[("user", &format!("{system}\n\n{user}"))], true),
        }
    }

    /// What the template writes after an answer: its end-of-turn token, and what follows.
    pub(crate) fn after_answer(&self) -> Option<String> {
        const ANSWER: &str = "rowmill-answer";
        let text = self.render(&[("user", "x"), ("assistant", ANSWER)], false).ok()?;
        text.split_once(ANSWER).map(|(_, after)| after.to_owned())
    }

    fn render(&self, messages: &[(&str, &str)], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> =
            messages.iter().map(|(role, content)| context! { role => *role, content => *content }).collect();
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template
            .render(context! {
                messages,
                add_generation_prompt,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
                enable_thinking => false,
            })
            .map_err(failed)
    }
}

fn failed(error: minijinja::Error) -> Error {
    // The message only: minijinja's debug report would show the template's variables, which hold row content.
    Error::invalid("the model's chat template failed")
        .caused_by(std::io::Error::other(error.to_string()))
        .hint("the template is in chat_template.jinja, tokenizer_config.json or the GGUF file's metadata")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn renders_as_the_hub_does() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n[{{ m.content | trim }}]\n  {% endif %}\n{% endfor %}{% if add_generation_prompt %}{{ '>' }}{% endif %}";
        let template = ChatTemplate::new(source.into(), "<s>", "").unwrap();
        assert_eq!(template.prompt(None, " hi {{ 1 }} ").unwrap(), "<s>[hi {{ 1 }}]\n>");
    }

    #[test]
    fn a_template_without_system_role_gets_it_in_the_user_message() {
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0]['content'].strip() }}";
        let template = ChatTemplate::new(source.into(), "", "").unwrap();
        assert_eq!(template.prompt(Some("be brief"), "hi ").unwrap(), "be brief\n\nhi");
    }

    #[test]
    fn the_end_of_turn_is_what_follows_an_answer() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}";
        assert_eq!(ChatTemplate::new(source.into(), "", "").unwrap().after_answer().unwrap(), "<end>\n");
    }
}

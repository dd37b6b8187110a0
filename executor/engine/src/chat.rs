//! Chat templates: the Jinja text that comes with a model and turns messages into its prompt, rendered as the Hugging Face
//! library does, but for the date, which is always the same. Offers no tools and asks reasoning models for the answer alone.

use chrono::{DateTime, Days};
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

/// Steps that a rendering may take: a template of hundreds of lines over a few messages needs a small part of it.
const FUEL: u64 = 200_000;

/// The date that templates are told, in days since 1970: 26 July 2024, which Llama 3's fall back on. Were it today's, a prompt
/// would be another after midnight and in another time zone, and a row that is computed again might have another answer.
const DATE: Days = Days::new(19_930);

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
            let date = DateTime::UNIX_EPOCH + DATE;
            let _ = std::fmt::write(&mut text, format_args!("{}", date.format(&format)));
            text
        });
        environment.set_fuel(Some(FUEL));
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
    fn the_date_is_the_same_every_day() {
        let source = "{{ strftime_now('%d %b %Y, %H:%M') }}|{{ strftime_now('%!') }}";
        let template = ChatTemplate::new(source.into(), "", "").unwrap();
        assert_eq!(template.prompt(None, "x").unwrap(), "26 Jul 2024, 00:00|");
    }

    #[test]
    fn a_template_that_does_not_end_fails() {
        let endless =
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}";
        let template = ChatTemplate::new(endless.into(), "", "").unwrap();
        assert!(template.prompt(None, "x").unwrap_err().report().contains("fuel"));
    }

    #[test]
    fn the_end_of_turn_is_what_follows_an_answer() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}";
        assert_eq!(ChatTemplate::new(source.into(), "", "").unwrap().after_answer().unwrap(), "<end>\n");
    }

    /// The constructs that well-known models' templates use: slices, namespaces, reversed lists, tests, `tojson`, dates.
    #[test]
    fn constructs_of_well_known_templates_work() {
        let llama3 = concat!(
            "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n",
            "        {%- set date_string = strftime_now(\"%d %b %Y\") %}\n    {%- endif %}\n{%- endif %}\n",
            "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n",
            "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n",
            "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n",
            "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n",
            "{%- if tools is not none %}\n    {{- \"Environment: ipython\\n\" }}\n{%- endif %}\n",
            "{{- system_message }}\n{{- \"<|eot_id|>\" }}\n{%- for message in messages %}\n",
            "    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n",
            "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n",
            "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n",
            "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n",
        );
        let template = ChatTemplate::new(llama3.into(), "<|begin_of_text|>", "<|eot_id|>").unwrap();
        assert_eq!(
            template.prompt(Some("Be brief."), " Hi ").unwrap(),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user\
             <|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        assert!(template.after_answer().unwrap().starts_with("<|eot_id|>"));
        let qwen3 = concat!(
            "{%- if tools %}\n    {{- tools | tojson }}\n{%- endif %}\n",
            "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n",
            "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n",
            "    {%- if ns.multi_step_tool and message.role == \"user\" and message.content is string and not(",
            "message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n",
            "        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n",
            "    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n",
            "    {%- if message.content is string %}\n        {%- set content = message.content %}\n    {%- else %}\n",
            "        {%- set content = '' %}\n    {%- endif %}\n",
            "    {%- if message.role == \"assistant\" and message.reasoning_content is string %}\n",
            "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n    {%- endif %}\n",
            "    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n",
            "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n",
            "    {%- if enable_thinking is defined and enable_thinking is false %}\n",
            "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}",
        );
        let template = ChatTemplate::new(qwen3.into(), "", "<|im_end|>").unwrap();
        assert_eq!(
            template.prompt(None, "Hi").unwrap(),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        );
        assert!(template.after_answer().unwrap().starts_with("<|im_end|>"));
    }
}

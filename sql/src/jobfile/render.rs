//! Fills `{{ parameter }}` holes of a job file with minijinja and maps places of the result back into the file. It
//! refuses blocks and comments of the template language, and values that could end a SQL string.

use std::collections::{BTreeMap, HashSet};

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use rowmill_jobs::{Error, Kind, Location, Result, error::closest};

/// Steps that rendering may take; a job file with thousands of holes needs a small part of it.
const FUEL: u64 = 200_000;

/// A job file before and after its parameters were filled in. Both texts have the same lines.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// Path as the user gave it.
    pub(crate) file: String,
    /// The text with parameters filled in.
    pub(crate) text: String,
    original: Vec<String>,
    lines: Vec<String>,
}

impl Rendered {
    /// The place in the user's file of a line and column (both from 1) of the filled-in text; line 0 is its end.
    pub(crate) fn locate(&self, line: u64, column: u64) -> Location {
        let (line, column) = if line == 0 { self.end() } else { (line, column.max(1)) };
        let index = usize::try_from(line).unwrap_or(1).saturating_sub(1);
        let column = match (self.original.get(index), self.lines.get(index)) {
            (Some(original), Some(rendered)) if original != rendered => original_column(original, rendered, column),
            _ => column,
        };
        Location { file: self.file.clone(), line, column }
    }

    /// The place after the last character that is not white space.
    pub(crate) fn end(&self) -> (u64, u64) {
        let text = self.text.trim_end();
        let last = text.rsplit('\n').next().unwrap_or_default();
        (text.matches('\n').count() as u64 + 1, last.chars().count() as u64 + 1)
    }

    /// An error at a line and column (both from 1) of the filled-in text.
    pub(crate) fn error(&self, at: (u64, u64), message: impl Into<String>) -> Error {
        Error::invalid(message).at(self.locate(at.0, at.1))
    }
}

/// Fills in the parameters.
pub(crate) fn render(file: &str, text: &str, params: &BTreeMap<String, String>) -> Result<Rendered> {
    check_values(params)?;
    refuse_blocks(file, text)?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    let template =
        environment.template_from_named_str("job", text).map_err(|error| template_error(file, text, &error))?;
    let used = template.undeclared_variables(false);
    refuse_unused(file, params, &used)?;
    let mut rendered = template.render(params).map_err(|error| match error.kind() {
        ErrorKind::UndefinedError => undefined_error(file, text, params, &error),
        _ => template_error(file, text, &error),
    })?;
    // minijinja drops one line end at the end of the file.
    if text.ends_with('\n') {
        rendered.push('\n');
    }
    let lines = |text: &str| text.split('\n').map(str::to_owned).collect::<Vec<_>>();
    let result = Rendered { file: file.to_owned(), original: lines(text), lines: lines(&rendered), text: rendered };
    if result.original.len() != result.lines.len() {
        return Err(Error::invalid("a `{{ … }}` must stand on one line and give one line").at(Location {
            file: file.to_owned(),
            line: 1,
            column: 1,
        }));
    }
    Ok(result)
}

/// A value must not be able to leave the SQL string it is put into.
fn check_values(params: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in params {
        let bad = value.chars().find(|c| matches!(c, '\'' | '"' | '`' | ';' | '\\') || c.is_control());
        if let Some(bad) = bad {
            return Err(Error::new(Kind::Usage, format!("the value of parameter `{name}` contains {bad:?}"))
                .with("parameter", name)
                .hint("parameter values may not contain quotes, semicolons, backslashes or control characters"));
        }
        if value.contains("--") || value.contains("/*") {
            return Err(Error::new(
                Kind::Usage,
                format!("the value of parameter `{name}` contains a SQL comment mark"),
            )
            .hint("parameter values may not contain `--` or `/*`"));
        }
    }
    Ok(())
}

/// Blocks and comments could remove lines, and then no error could say where it is.
fn refuse_blocks(file: &str, text: &str) -> Result<()> {
    for (index, line) in text.split('\n').enumerate() {
        for (mark, what) in
            [("{%", "blocks"), ("{#", "comments"), ("{{-", "white space control"), ("-}}", "white space control")]
        {
            if let Some(position) = line.find(mark) {
                return Err(Error::invalid(format!("`{mark}`: template {what} are not supported in job files"))
                    .at(place(file, index, line, position))
                    .hint("only {{ parameter }} is filled in, with filters such as {{ ds | default('2026-01-01') }}"));
            }
        }
    }
    Ok(())
}

fn refuse_unused(file: &str, params: &BTreeMap<String, String>, used: &HashSet<String>) -> Result<()> {
    let Some(unused) = params.keys().find(|name| !used.contains(*name)) else { return Ok(()) };
    let error = Error::new(Kind::Usage, format!("parameter `{unused}` is not used in {file}"));
    let mut names: Vec<&str> = used.iter().map(String::as_str).collect();
    names.sort_unstable();
    Err(match closest(unused, names.iter().copied()) {
        Some(name) => error.hint(format!("did you mean `--param {name}=…`?")),
        None if names.is_empty() => error.hint("the file uses no parameters: leave the option out"),
        None => error.hint(format!("the file uses: {}", names.join(", "))),
    })
}

fn undefined_error(file: &str, text: &str, params: &BTreeMap<String, String>, error: &minijinja::Error) -> Error {
    let line_index = error.line().unwrap_or(1).saturating_sub(1);
    let line = text.split('\n').nth(line_index).unwrap_or_default();
    let missing = holes(line).into_iter().find_map(|(start, end)| {
        let inner = &line[start + 2..end - 2];
        let name: String = inner.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (!name.is_empty() && !params.contains_key(&name) && !inner.contains("default")).then_some((start, name))
    });
    let (position, name) = missing.unwrap_or_else(|| (line.find("{{").unwrap_or(0), "NAME".to_owned()));
    Error::new(Kind::Usage, format!("parameter `{name}` has no value"))
        .at(place(file, line_index, line, position))
        .hint(format!("give it with `--param {name}=VALUE`, or a default in the file: {{{{ {name} | default('…') }}}}"))
}

fn template_error(file: &str, text: &str, error: &minijinja::Error) -> Error {
    let line_index = error.line().unwrap_or(1).saturating_sub(1);
    let line = text.split('\n').nth(line_index).unwrap_or_default();
    let message = match error.kind() {
        ErrorKind::OutOfFuel => "filling in the parameters takes too many steps".to_owned(),
        kind => {
            format!("cannot fill in the parameters: {}", error.detail().map_or_else(|| kind.to_string(), str::to_owned))
        }
    };
    Error::invalid(message)
        .at(place(file, line_index, line, line.find("{{").unwrap_or(0)))
        .hint("a hole is {{ name }} or {{ name | default('value') }}")
}

fn place(file: &str, line_index: usize, line: &str, byte: usize) -> Location {
    let column = line.get(..byte).map_or(0, |before| before.chars().count());
    Location { file: file.to_owned(), line: line_index as u64 + 1, column: column as u64 + 1 }
}

/// Byte ranges of the `{{ … }}` of a line.
fn holes(line: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = line[from..].find("{{").map(|at| at + from) {
        let Some(end) = line[start..].find("}}").map(|at| at + start + 2) else { break };
        found.push((start, end));
        from = end;
    }
    found
}

/// The column (from 1) in `original` of a column of `rendered`: literal text maps onto itself, what a hole gave maps to
/// the hole.
fn original_column(original: &str, rendered: &str, column: u64) -> u64 {
    let target = usize::try_from(column).unwrap_or(1).saturating_sub(1);
    let chars = |text: &str| text.chars().count();
    // Walks literal, hole, literal, hole … literal; `seen` bytes of `rendered` are matched.
    let (mut seen, mut from) = (0, 0);
    let holes = holes(original);
    for (index, (start, end)) in holes.iter().enumerate() {
        let literal = &original[from..*start];
        let literal_end = chars(&rendered[..seen]) + chars(literal);
        if target < literal_end {
            return (chars(&original[..from]) + target - chars(&rendered[..seen])) as u64 + 1;
        }
        seen = (seen + literal.len()).min(rendered.len());
        let next = holes.get(index + 1).map_or(original.len(), |(next, _)| *next);
        let following = &original[*end..next];
        let Some(rest) = rendered.get(seen..) else { break };
        let given = if index + 1 == holes.len() {
            rest.len().saturating_sub(following.len())
        } else if following.is_empty() {
            0
        } else {
            rest.find(following).unwrap_or(0)
        };
        if target < chars(&rendered[..seen]) + chars(rest.get(..given).unwrap_or_default()) {
            return chars(&original[..*start]) as u64 + 1;
        }
        seen += given;
        from = *end;
    }
    let before = rendered.get(..seen).map_or(0, chars);
    (chars(&original[..from]) + target.saturating_sub(before)) as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn places_map_back_around_holes() {
        let text = "a\nx = '{{ ds }}/{{ region }}' AND oops\n";
        let rendered = render("j.sql", text, &params(&[("ds", "2026-11-20"), ("region", "eu")])).unwrap();
        assert_eq!(rendered.text, "a\nx = '2026-11-20/eu' AND oops\n");
        let column = |needle: &str| rendered.text.lines().nth(1).unwrap().find(needle).unwrap() as u64 + 1;
        let at = |needle: &str| text.lines().nth(1).unwrap().find(needle).unwrap() as u64 + 1;
        assert_eq!(rendered.locate(2, column("oops")).column, at("oops"));
        assert_eq!(rendered.locate(2, column("x =")).column, at("x ="));
        assert_eq!(rendered.locate(2, column("26-11")).column, at("{{ ds }}"));
        assert_eq!(rendered.locate(2, column("eu")).column, at("{{ region }}"));
        assert_eq!(rendered.locate(2, column("/eu")).column, at("/{{"));
    }

    #[test]
    fn values_cannot_leave_a_string() {
        for bad in ["a'b", "a\"b", "a;b", "a\\b", "a\nb", "a\u{0}b", "a -- b", "/* a"] {
            let error = render("j.sql", "{{ x }}", &params(&[("x", bad)])).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{bad:?}");
        }
        assert_eq!(render("j.sql", "{{ x }}", &params(&[("x", "a/b=c,d e-f")])).unwrap().text, "a/b=c,d e-f");
    }

    #[test]
    fn undefined_unused_and_defaults() {
        let error = render("j.sql", "SELECT 1,\n  '{{ ds }}'", &params(&[])).unwrap_err();
        assert_eq!(
            error.report(),
            "error: parameter `ds` has no value\n  at j.sql:2:4\n  hint: give it with `--param ds=VALUE`, or a default in the \
             file: {{ ds | default('…') }}"
        );
        assert_eq!(render("j.sql", "{{ x | default('y') }}", &params(&[])).unwrap().text, "y");
        let error = render("j.sql", "{{ ds }}", &params(&[("dss", "1"), ("ds", "1")])).unwrap_err();
        assert_eq!(error.hint_text(), Some("did you mean `--param ds=…`?"));
        assert!(render("j.sql", "{% if x %}{% endif %}", &params(&[])).is_err());
        assert!(render("j.sql", "{{ range(1000000) | join }}", &params(&[])).is_err());
    }
}

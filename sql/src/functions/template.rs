//! Prompt templates: the texts under `prompts/` with their holes filled, and `prompt('… {0} …', a, b)`. What the job's
//! author wrote and what rows hold stay apart as different [`Piece`]s.

use rowmill_jobs::infer::Piece;

const CLASSIFY: &str = include_str!("../../prompts/classify.txt");
const EXTRACT: &str = include_str!("../../prompts/extract.txt");
const FILTER: &str = include_str!("../../prompts/filter.txt");

/// `ai_classify`'s prompt. `labels` are the lines of the list.
pub(crate) fn classify(task: &str, labels: &[String], input: Vec<Piece>) -> Vec<Piece> {
    fill(CLASSIFY, &[("task", vec![text(task)]), ("labels", vec![text(&labels.join("\n"))]), ("input", input)])
}

/// `ai_extract`'s prompt. `fields` are the lines of the list.
pub(crate) fn extract(fields: &[String], input: Vec<Piece>) -> Vec<Piece> {
    fill(EXTRACT, &[("fields", vec![text(&fields.join("\n"))]), ("input", input)])
}

/// `ai_filter`'s prompt.
pub(crate) fn filter(input: Vec<Piece>) -> Vec<Piece> {
    fill(FILTER, &[("input", input)])
}

fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

/// Fills the holes of one of our own templates; a line whose only hole is empty is left out.
fn fill(template: &str, holes: &[(&str, Vec<Piece>)]) -> Vec<Piece> {
    let template = template.strip_suffix('\n').unwrap_or(template);
    let mut pieces = Vec::new();
    let mut first = true;
    for line in template.split('\n') {
        let hole = holes.iter().find(|(name, _)| line.contains(&format!("{{{name}}}")));
        if let Some((name, value)) = hole
            && line == format!("{{{name}}}")
            && value.iter().all(|piece| *piece == Piece::Text(String::new()))
        {
            continue;
        }
        if !std::mem::take(&mut first) {
            pieces.push(text("\n"));
        }
        match hole.and_then(|(name, value)| Some((line.split_once(&format!("{{{name}}}"))?, value))) {
            Some(((before, after), value)) => {
                pieces.push(text(before));
                pieces.extend(value.iter().cloned());
                pieces.push(text(after));
            }
            None => pieces.push(text(line)),
        }
    }
    merge(pieces)
}

/// Joins neighbouring texts and drops empty ones.
pub(crate) fn merge(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match (merged.last_mut(), piece) {
            (_, Piece::Text(text)) if text.is_empty() => {}
            (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
            (_, piece) => merged.push(piece),
        }
    }
    merged
}

/// Takes `'… {0} … {1}'` apart. Only a number or a word in braces is looked at, so that JSON can stand in a prompt;
/// doubled braces are the job file's parameters and never come here. The error says what is wrong.
pub(crate) fn parse(template: &str, values: usize) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut used = vec![false; values];
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let inside = rest[open + 1..].split('}').next().filter(|inner| rest[open + 1..].len() > inner.len());
        let word = inside.filter(|inner| !inner.is_empty() && inner.chars().all(|c| c.is_alphanumeric() || c == '_'));
        let Some(word) = word else {
            text.push_str(&rest[..=open]);
            rest = &rest[open + 1..];
            continue;
        };
        let index: usize =
            word.parse().map_err(|_| format!("`{{{word}}}` is not a hole: holes are {{0}}, {{1}}, …"))?;
        let seen = used.get_mut(index).ok_or_else(|| {
            format!("the template has {{{index}}}, and there are {values} values after it (they count from 0)")
        })?;
        *seen = true;
        text.push_str(&rest[..open]);
        pieces.push(Piece::Text(std::mem::take(&mut text)));
        pieces.push(Piece::Value(index));
        rest = &rest[open + word.len() + 2..];
    }
    text.push_str(rest);
    pieces.push(Piece::Text(text));
    match used.iter().position(|used| !used) {
        Some(index) => Err(format!("the template does not use value {{{index}}}")),
        None => Ok(merge(pieces)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classify_leaves_out_an_empty_task() {
        let labels = ["- a".to_owned(), "- b: second".to_owned()];
        assert_eq!(
            classify("", &labels, vec![Piece::Value(0)]),
            [
                Piece::Text("Which category fits the text best?\nCategories:\n- a\n- b: second\n\nText:\n".into()),
                Piece::Value(0)
            ]
        );
        let Piece::Text(start) = &classify("By team.", &labels, vec![Piece::Value(0)])[0] else { unreachable!() };
        assert!(start.starts_with("Which category fits the text best?\nBy team.\nCategories:\n"));
        // A label that looks like a hole stays a label.
        let odd = classify("", &["- {input}".to_owned()], vec![Piece::Value(0)]);
        assert_eq!(odd.iter().filter(|piece| matches!(piece, Piece::Value(_))).count(), 1);
    }

    #[test]
    fn filter_keeps_the_question_before_the_instruction() {
        let question = parse("Is it about {0}? {1}", 2).unwrap();
        assert_eq!(
            filter(question),
            [
                Piece::Text("Is it about ".into()),
                Piece::Value(0),
                Piece::Text("? ".into()),
                Piece::Value(1),
                Piece::Text("\n\nAnswer yes or no.".into())
            ]
        );
    }

    #[test]
    fn templates_say_what_is_wrong_with_them() {
        assert_eq!(
            parse(r#"{"a": [{}]} for {0}."#, 1).unwrap(),
            [Piece::Text(r#"{"a": [{}]} for "#.into()), Piece::Value(0), Piece::Text(".".into())]
        );
        assert!(parse("{1}", 1).unwrap_err().contains("{1}"));
        assert!(parse("nothing", 1).unwrap_err().contains("does not use value {0}"));
        assert!(parse("{name}", 1).unwrap_err().contains("is not a hole"));
    }
}

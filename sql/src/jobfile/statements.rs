//! Cuts a job file into its statements. It accepts `CREATE EXTERNAL TABLE`, `CREATE MODEL` and exactly one
//! `CREATE JOB … AS SELECT`, and refuses every other statement at its place.

use datafusion::sql::parser::{CreateExternalTable, DFParser, DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{Ident, Query};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use rowmill_jobs::{Error, Result};

use super::options::{OptionItem, OptionValue, Place};
use super::render::Rendered;

/// Nested expressions and subqueries that are parsed before the parser gives up.
pub(crate) const DEPTH_MAX: usize = 100;
static DIALECT: GenericDialect = GenericDialect {};

/// The statements of a job file.
pub(super) struct Statements {
    pub(super) tables: Vec<TableStatement>,
    pub(super) models: Vec<ModelStatement>,
    pub(super) job: Option<JobStatement>,
}

/// `CREATE EXTERNAL TABLE`.
pub(super) struct TableStatement {
    pub(super) name_at: Place,
    pub(super) parsed: CreateExternalTable,
    /// The statement's tokens, to find places that the parser does not keep.
    pub(super) tokens: Vec<TokenWithSpan>,
}

/// `CREATE MODEL name WITH (…)`.
pub(super) struct ModelStatement {
    pub(super) name: String,
    pub(super) name_at: Place,
    pub(super) options: Vec<OptionItem>,
}

/// `CREATE JOB name WITH (…) AS query`.
pub(super) struct JobStatement {
    pub(super) name: String,
    pub(super) name_at: Place,
    pub(super) options: Vec<OptionItem>,
    pub(super) query: QueryText,
}

/// The SELECT of a job.
#[derive(Clone)]
pub(super) struct QueryText {
    pub(super) text: String,
    pub(super) start: Place,
    pub(super) ast: Box<Query>,
}

/// Splits the file.
pub(super) fn parse(source: &Rendered) -> Result<Statements> {
    let tokens = Tokenizer::new(&DIALECT, &source.text)
        .tokenize_with_location()
        .map_err(|error| syntax_error(source, &error.to_string()))?;
    let parser = DFParserBuilder::new(tokens.clone())
        .with_dialect(&DIALECT)
        .with_recursion_limit(DEPTH_MAX)
        .build()
        .map_err(|error| syntax_error(source, &error.to_string()))?;
    let mut reader = Reader { source, tokens, parser };
    let (mut tables, mut models, mut job) = (Vec::new(), Vec::new(), None);
    loop {
        while reader.parser.parser.consume_token(&Token::SemiColon) {}
        let first = reader.parser.parser.peek_token();
        if first.token == Token::EOF {
            break;
        }
        match reader.kind()? {
            Kind::Table => tables.push(reader.table()?),
            Kind::Model => models.push(reader.model()?),
            Kind::Job if job.is_some() => {
                return Err(source.error(place(&first), "a job file has one CREATE JOB, and this is the second"))
                    .map_err(|error| error.hint("put it into a file of its own"));
            }
            Kind::Job => job = Some(reader.job()?),
        }
        let next = reader.parser.parser.peek_token();
        if !matches!(next.token, Token::SemiColon | Token::EOF) {
            return Err(source.error(place(&next), format!("expected `;` before {}", shown(&next.token))));
        }
    }
    Ok(Statements { tables, models, job })
}

enum Kind {
    Table,
    Model,
    Job,
}

struct Reader<'a> {
    source: &'a Rendered,
    tokens: Vec<TokenWithSpan>,
    parser: DFParser<'a>,
}

impl Reader<'_> {
    /// What the next statement is, by its first words.
    fn kind(&self) -> Result<Kind> {
        let first = self.parser.parser.peek_token();
        let word = |token: &TokenWithSpan| match &token.token {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_uppercase(),
            _ => String::new(),
        };
        let second = self.parser.parser.peek_nth_token(1);
        match (word(&first).as_str(), word(&second).as_str()) {
            ("CREATE", "EXTERNAL") => Ok(Kind::Table),
            ("CREATE", "MODEL") => Ok(Kind::Model),
            ("CREATE", "JOB") => Ok(Kind::Job),
            ("CREATE", "TABLE") => Err(self
                .source
                .error(place(&first), "CREATE TABLE cannot stand in a job file")
                .hint("tables are CREATE EXTERNAL TABLE name STORED AS PARQUET LOCATION '…'")),
            ("SELECT" | "WITH", _) => Err(self
                .source
                .error(place(&first), "a SELECT alone is not a job")
                .hint("write CREATE JOB name WITH (output = '…', logical_date = '{{ ds }}') AS SELECT …")),
            (statement, next) => {
                let named = if statement == "CREATE" { format!("CREATE {next}") } else { statement.to_owned() };
                let named =
                    if named.trim().is_empty() { shown(&first.token) } else { format!("{} statements", named.trim()) };
                Err(self
                    .source
                    .error(place(&first), format!("{named} cannot stand in a job file"))
                    .hint("a job file has CREATE EXTERNAL TABLE, CREATE MODEL and one CREATE JOB … AS SELECT"))
            }
        }
    }

    fn table(&mut self) -> Result<TableStatement> {
        let start = self.parser.parser.index();
        let name_at = place(&self.parser.parser.peek_nth_token(3));
        let statement = self
            .parser
            .parse_statement()
            .map_err(|error| syntax_error_near(self.source, &error.to_string(), name_at))?;
        let tokens = self.tokens.get(start..self.parser.parser.index()).unwrap_or_default().to_vec();
        match statement {
            Statement::CreateExternalTable(parsed) => Ok(TableStatement { name_at, parsed, tokens }),
            _ => Err(self.source.error(name_at, "expected CREATE EXTERNAL TABLE")),
        }
    }

    fn model(&mut self) -> Result<ModelStatement> {
        self.parser.parser.next_token();
        self.parser.parser.next_token();
        let (name, name_at) = self.name()?;
        let options = self.options()?;
        Ok(ModelStatement { name, name_at, options })
    }

    fn job(&mut self) -> Result<JobStatement> {
        self.parser.parser.next_token();
        self.parser.parser.next_token();
        let (name, name_at) = self.name()?;
        let options = self.options()?;
        self.expect(&|token| matches!(token, Token::Word(word) if word.keyword == Keyword::AS), "AS SELECT …")?;
        let first = self.parser.parser.peek_token();
        if !matches!(&first.token, Token::Word(word) if matches!(word.keyword, Keyword::SELECT | Keyword::WITH))
            && first.token != Token::LParen
        {
            return Err(self
                .source
                .error(place(&first), format!("expected SELECT after AS, found {}", shown(&first.token))));
        }
        let ast = self
            .parser
            .parser
            .parse_query()
            .map_err(|error| syntax_error_near(self.source, &error.to_string(), place(&first)))?;
        let next = self.parser.parser.peek_token();
        let end = match next.token {
            Token::EOF => self.source.text.len(),
            _ => offset(&self.source.text, place(&next)),
        };
        let text = self.source.text.get(offset(&self.source.text, place(&first))..end).unwrap_or_default();
        let query = QueryText { text: text.trim_end().to_owned(), start: place(&first), ast };
        Ok(JobStatement { name, name_at, options, query })
    }

    fn name(&mut self) -> Result<(String, Place)> {
        let token = self.parser.parser.peek_token();
        match &token.token {
            Token::Word(word) if word.value.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') => {
                self.parser.parser.next_token();
                Ok((normal(&word.to_ident(token.span)), place(&token)))
            }
            other => Err(self
                .source
                .error(place(&token), format!("expected a name, found {}", shown(other)))
                .hint("names have letters, digits and _")),
        }
    }

    fn expect(&mut self, fits: &dyn Fn(&Token) -> bool, wanted: &str) -> Result<()> {
        let token = self.parser.parser.peek_token();
        if fits(&token.token) {
            self.parser.parser.next_token();
            return Ok(());
        }
        Err(self.source.error(place(&token), format!("expected {wanted}, found {}", shown(&token.token))))
    }

    /// `WITH (name = value, …)`; a comma before `)` is allowed.
    fn options(&mut self) -> Result<Vec<OptionItem>> {
        self.expect(
            &|token| matches!(token, Token::Word(word) if word.keyword == Keyword::WITH),
            "WITH (option = value, …)",
        )?;
        self.expect(&|token| *token == Token::LParen, "`(`")?;
        let mut items = Vec::new();
        while !self.parser.parser.consume_token(&Token::RParen) {
            let (name, name_at) = self.name()?;
            self.expect(&|token| *token == Token::Eq, &format!("`=` after option `{name}`"))?;
            let (value, value_at) = self.value(&name)?;
            items.push(OptionItem { name: name.to_lowercase(), name_at, value, value_at });
            if !self.parser.parser.consume_token(&Token::Comma) {
                self.expect(&|token| *token == Token::RParen, "`,` or `)` after an option")?;
                break;
            }
        }
        Ok(items)
    }

    fn value(&mut self, name: &str) -> Result<(OptionValue, Place)> {
        let minus = self.parser.parser.consume_token(&Token::Minus);
        let token = self.parser.parser.next_token();
        let value = match &token.token {
            Token::SingleQuotedString(text) if !minus => OptionValue::Text(text.clone()),
            Token::Number(digits, _) => OptionValue::Number(format!("{}{digits}", if minus { "-" } else { "" })),
            Token::Word(word) if word.keyword == Keyword::TRUE && !minus => OptionValue::Bool(true),
            Token::Word(word) if word.keyword == Keyword::FALSE && !minus => OptionValue::Bool(false),
            other => {
                return Err(self
                    .source
                    .error(
                        place(&token),
                        format!("option `{name}` has no value that can be read: found {}", shown(other)),
                    )
                    .hint("a value is a 'string' in single quotes, a number, true or false"));
            }
        };
        Ok((value, place(&token)))
    }
}

/// Unquoted names are case-insensitive, as everywhere in DataFusion.
pub(super) fn normal(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Where a token starts; `(0, 0)` stands for the end of the file.
pub(super) fn place(token: &TokenWithSpan) -> Place {
    (token.span.start.line, token.span.start.column)
}

fn shown(token: &Token) -> String {
    match token {
        Token::EOF => "the end of the file".to_owned(),
        other => format!("`{other}`"),
    }
}

/// Byte offset of a line and column (from 1, in characters).
fn offset(text: &str, (line, column): Place) -> usize {
    let skip = usize::try_from(line - 1).unwrap_or(0);
    let line_start = text.split_inclusive('\n').take(skip).map(str::len).sum::<usize>();
    let in_line = usize::try_from(column - 1).unwrap_or(0);
    text.get(line_start..).map_or(text.len(), |rest| {
        line_start + rest.char_indices().nth(in_line).map_or(rest.len(), |(position, _)| position)
    })
}

/// A parser's error with its place, which it only tells in words.
fn syntax_error(source: &Rendered, message: &str) -> Error {
    syntax_error_near(source, message, (1, 1))
}

fn syntax_error_near(source: &Rendered, message: &str, near: Place) -> Error {
    let (message, at) = split_place(message);
    let near = if message.ends_with("found: EOF") { (0, 0) } else { near };
    source.error(at.unwrap_or(near), message.replace("found: EOF", "found the end of the file"))
}

/// Takes "… at Line: 3, Column: 7" apart, and the parser's own prefixes off.
pub(crate) fn split_place(message: &str) -> (String, Option<Place>) {
    let mut text = message;
    for prefix in
        ["SQL error: ", "sql parser error: ", "ParserError(\"", "Error during planning: ", "TokenizerError(\""]
    {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    let text = text.strip_suffix("\")").unwrap_or(text);
    let Some(position) = text.rfind("at Line: ") else { return (text.to_owned(), None) };
    let digits =
        |part: &str| part.trim().chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().ok();
    let place = text[position + 9..]
        .split_once(", Column: ")
        .and_then(|(line, column)| Some((digits(line)?, digits(column)?)))
        .filter(|(line, column)| *line > 0 && *column > 0);
    (text[..position].trim_end().trim_end_matches(',').to_owned(), place)
}

//! Results on standard output, as text for people or JSON for scripts; everything else goes to
//! standard error.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Text for people.
    Text,
    /// One JSON document, or one per line for streams.
    Json,
    /// Shell lines that export AWS variables (`issue` and `lease renew` alone).
    Env,
    /// The JSON of AWS's `credential_process` (`issue` and `credential-process` alone).
    CredentialProcess,
}

/// Writer of results.
pub(super) struct Output {
    format: Format,
    out: Box<dyn Write + Send>,
}

impl Output {
    pub(super) fn new(format: Format, out: Box<dyn Write + Send>) -> Self {
        Self { format, out }
    }

    pub(super) const fn format(&self) -> Format {
        self.format
    }

    /// Writes one result: a JSON document, or one line per field.
    pub(super) fn show(&mut self, result: &impl Serialize) -> io::Result<()> {
        if self.format == Format::Json {
            return self.json(result);
        }
        let fields = object(serde_json::to_value(result)?);
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in &fields {
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !empty {
                writeln!(self.out, "{name:width$}  {}", text(value))?;
            }
        }
        Ok(())
    }

    /// Writes several results: a JSON array, or a table of these columns.
    pub(super) fn list(&mut self, results: &[impl Serialize], columns: &[&str]) -> io::Result<()> {
        if self.format == Format::Json {
            return self.json(&results);
        }
        if results.is_empty() {
            return writeln!(io::stderr(), "none");
        }
        let mut rows = vec![
            columns
                .iter()
                .map(|name| name.to_uppercase())
                .collect::<Vec<_>>(),
        ];
        for result in results {
            let fields = object(serde_json::to_value(result)?);
            rows.push(columns.iter().map(|name| text(&fields[*name])).collect());
        }
        self.table(&rows)
    }

    /// Writes one entry of a stream: a JSON document, or one line.
    pub(super) fn entry(&mut self, entry: &impl Serialize, line: &str) -> io::Result<()> {
        if self.format == Format::Json {
            self.json(entry)
        } else {
            self.line(line)
        }
    }

    /// Writes that an object is deleted.
    pub(super) fn deleted(&mut self, what: &str, name: &str) -> io::Result<()> {
        self.entry(
            &serde_json::json!({ "deleted": name }),
            &format!("{what} {name} is deleted"),
        )
    }

    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    fn json(&mut self, result: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, result)?;
        writeln!(self.out)?;
        self.out.flush()
    }

    fn table(&mut self, rows: &[Vec<String>]) -> io::Result<()> {
        let columns = rows.first().map_or(0, Vec::len);
        let width = |at: usize| {
            rows.iter()
                .map(|row| row[at].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(self.out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => Map::from_iter([("result".to_owned(), other)]),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, write: impl FnOnce(&mut Output) -> io::Result<()>) -> String {
        let captured = Captured::default();
        write(&mut Output::new(format, Box::new(captured.clone()))).unwrap();
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_list_is_a_table_or_a_json_array() {
        let rows = [
            json!({"name": "a", "live": true}),
            json!({"name": "long", "live": null}),
        ];
        let table = written(Format::Text, |out| out.list(&rows, &["name", "live"]));
        assert_eq!(table, "NAME  LIVE\na     yes\nlong  -\n");
        let array = written(Format::Json, |out| out.list(&rows, &["name"]));
        assert_eq!(
            array,
            "[{\"name\":\"a\",\"live\":true},{\"name\":\"long\",\"live\":null}]\n"
        );
    }

    #[test]
    fn an_object_shows_what_it_has() {
        let object = json!({"name": "a", "none": null, "many": ["x", "y"]});
        assert_eq!(
            written(Format::Text, |out| out.show(&object)),
            "name  a\nmany  x, y\n"
        );
    }
}

//! Comparison of the `*` and `?` patterns of IAM: whether two intersect, whether one covers
//! another.
//!
//! `*` matches any run of characters, the empty one too, and `?` matches exactly one character
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html>).

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Run,
    One,
    Literal(char),
}

/// Returns whether some text matches both patterns.
pub(super) fn intersects(left: &str, right: &str) -> bool {
    let (left, right) = (tokens(left), tokens(right));
    let mut reachable = vec![vec![false; right.len() + 1]; left.len() + 1];
    reachable[0][0] = true;
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            if reachable[i][j] {
                for (di, dj) in steps(left.get(i), right.get(j)) {
                    reachable[i + di][j + dj] = true;
                }
            }
        }
    }
    reachable[left.len()][right.len()]
}

/// Returns the steps, in tokens of each side, that both sides may take while they read the same
/// text.
fn steps(left: Option<&Token>, right: Option<&Token>) -> Vec<(usize, usize)> {
    let mut steps = Vec::with_capacity(3);
    if left == Some(&Token::Run) {
        steps.push((1, 0));
    }
    if right == Some(&Token::Run) {
        steps.push((0, 1));
    }
    if let (Some(left), Some(right)) = (left, right) {
        steps.extend(shared_steps(*left, *right));
    }
    steps
}

fn shared_steps(left: Token, right: Token) -> Option<(usize, usize)> {
    match (left, right) {
        (Token::Run, Token::Run) => None,
        (Token::Run, _) => Some((0, 1)),
        (_, Token::Run) => Some((1, 0)),
        (Token::Literal(a), Token::Literal(b)) if a != b => None,
        _ => Some((1, 1)),
    }
}

/// Returns whether every text that matches `part` also matches `whole`.
///
/// The answer is exact. It is decided on a few texts that match `part`: each `*` is empty or long,
/// and every wildcard is a character that no pattern contains. The number of texts doubles with
/// each `*` of `part`.
pub(super) fn covers(whole: &str, part: &str) -> bool {
    let (whole, part) = (tokens(whole), tokens(part));
    let fixed = fixed(&part);
    // The shortest text of `part` has fewer characters than `whole` needs.
    if self::fixed(&whole) > fixed {
        return false;
    }
    witnesses(&part, fixed + 1)
        .iter()
        .all(|text| matches(&whole, text))
}

/// Character of a text; `None`: a character that no pattern contains.
type Symbol = Option<char>;

fn witnesses(part: &[Token], long: usize) -> Vec<Vec<Symbol>> {
    part.iter().fold(vec![Vec::new()], |texts, token| {
        let endings = match token {
            Token::Run => vec![Vec::new(), vec![None; long]],
            Token::One => vec![vec![None]],
            Token::Literal(character) => vec![vec![Some(*character)]],
        };
        let extended = |text: &Vec<Symbol>| {
            endings
                .iter()
                .map(|end| [&text[..], end].concat())
                .collect::<Vec<_>>()
        };
        texts.iter().flat_map(extended).collect()
    })
}

fn matches(pattern: &[Token], text: &[Symbol]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Restart point if a token does not fit: behind the last run, one character later.
    let mut retry: Option<(usize, usize)> = None;
    while read < text.len() {
        match (pattern.get(at), retry) {
            (Some(Token::Run), _) => {
                at += 1;
                retry = Some((at, read));
            }
            (Some(&token), _) if fits(token, text[read]) => (at, read) = (at + 1, read + 1),
            (_, Some((after_run, start))) => {
                (at, read) = (after_run, start + 1);
                retry = Some((at, read));
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|token| *token == Token::Run)
}

fn fits(token: Token, symbol: Symbol) -> bool {
    match token {
        Token::Run | Token::One => true,
        Token::Literal(character) => symbol == Some(character),
    }
}

fn fixed(tokens: &[Token]) -> usize {
    tokens.iter().filter(|token| **token != Token::Run).count()
}

/// Returns the tokens of a pattern. Each stretch of wildcards is in one order, `?` before `*`, so
/// that equal patterns such as `*?*` and `?*` have the same tokens.
fn tokens(pattern: &str) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(pattern.len());
    let mut run = false;
    for character in pattern.chars() {
        match character {
            '*' => run = true,
            '?' => tokens.push(Token::One),
            _ => {
                if std::mem::take(&mut run) {
                    tokens.push(Token::Run);
                }
                tokens.push(Token::Literal(character));
            }
        }
    }
    if run {
        tokens.push(Token::Run);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slow and plain matcher, to compare the fast ones with.
    fn plain_match(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => plain_match(rest, text),
            (Some(('*', rest)), Some((_, tail))) => {
                plain_match(rest, text) || plain_match(pattern, tail)
            }
            (Some((one, rest)), Some((first, tail))) => {
                (*one == '?' || one == first) && plain_match(rest, tail)
            }
            _ => false,
        }
    }

    fn words(alphabet: &[char], longest: usize) -> Vec<Vec<char>> {
        let mut words = vec![Vec::new()];
        let mut last = words.clone();
        for _ in 0..longest {
            let grown = |word: &Vec<char>| {
                alphabet
                    .iter()
                    .map(|c| [&word[..], &[*c]].concat())
                    .collect::<Vec<_>>()
            };
            last = last.iter().flat_map(grown).collect();
            words.extend(last.clone());
        }
        words
    }

    /// Returns every pattern of up to three tokens over a, b, `*`, `?`. Each comes with a flag for
    /// each text over a, b and a letter that no pattern contains: whether the text matches.
    fn languages() -> Vec<(String, Vec<bool>)> {
        let texts = words(&['a', 'b', 'z'], 6);
        let language = |pattern: Vec<char>| {
            let matched = texts
                .iter()
                .map(|text| plain_match(&pattern, text))
                .collect();
            (pattern.iter().collect(), matched)
        };
        words(&['a', 'b', '*', '?'], 3)
            .into_iter()
            .map(language)
            .collect()
    }

    #[test]
    fn two_patterns_intersect_exactly_when_some_text_matches_both() {
        let languages = languages();
        for (left, matched_left) in &languages {
            for (right, matched_right) in &languages {
                let brute = matched_left
                    .iter()
                    .zip(matched_right)
                    .any(|(a, b)| *a && *b);
                assert_eq!(intersects(left, right), brute, "{left} {right}");
            }
        }
    }

    #[test]
    fn one_pattern_covers_another_exactly_when_it_matches_all_of_its_texts() {
        let languages = languages();
        for (whole, matched_whole) in &languages {
            for (part, matched_part) in &languages {
                let brute = matched_whole
                    .iter()
                    .zip(matched_part)
                    .all(|(whole, part)| *whole || !*part);
                assert_eq!(covers(whole, part), brute, "{whole} {part}");
            }
        }
    }

    #[test]
    fn long_patterns_of_many_wildcards_are_answered_at_once() {
        let many = "*?a".repeat(20_000);
        assert!(intersects(&many, "iam:*a") && !covers(&many, "iam:*"));
        assert!(!intersects(&format!("{many}b"), "iam:a"));
        assert!(covers(&"*".repeat(60_000), "iam:*"));
    }
}

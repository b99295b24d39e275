"""217 JSON schemas with questions: function signatures, bodies of web services, nested and recursive ones.

    python benchmarks/schemas.py > schemas.jsonl

All are written here, in a short form: `{name: str, age?: int0..99}` is an object of a text and an optional number,
`a|b` one of two words, `T[1..3]` a list, `<T>` an object of any names, `T?` a T or null, `@x` a reference, `/re/` a
text of that pattern. Every text and list is bounded, so that answers end. The last ones cannot be held to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TEXT_LENGTH, LIST_LENGTH = 24, 3
_TOKEN = re.compile(r"\s*(/(?:[^/\\]|\\.)+/|-?\d+(?:\.\d+)?\.\.-?\d+(?:\.\d+)?|[\w$-]+|[{}\[\]<>:,|?@])")
_FORMATS = {"date": "date", "time": "time", "datetime": "date-time", "uuid": "uuid", "email": "email", "ip": "ipv4"}

FUNCTIONS = """
get_weather(city: str, unit: celsius|fahrenheit, days?: int1..14)
send_email(to: email[1..2], subject: str, body: str, urgent?: bool)
create_event(title: str, start: datetime, minutes: int5..480, guests?: email[0..2], room?: str)
search_flights(origin: /[A-Z]{3}/, destination: /[A-Z]{3}/, day: date, cabin: economy|business|first, adults: int1..9)
convert_currency(amount: num0..100000, source: /[A-Z]{3}/, target: /[A-Z]{3}/)
set_thermostat(room: kitchen|bedroom|office, celsius: num5..30, until?: time)
play_music(artist?: str, title: str, shuffle: bool, volume: int0..100)
translate(text: str, source?: en|de|fr|no, target: en|de|fr|no, formal: bool)
book_table(restaurant: str, people: int1..12, at: datetime, name: str, outside?: bool)
run_query(table: str, columns: str[1..3], where?: {column: str, operator: eq|lt|gt|like, value: str}, limit: int1..100)
create_user(name: str, email: email, role: admin|editor|viewer, active: bool, tags?: str[])
transfer_money(source: /[0-9]{8}/, target: /[0-9]{8}/, cents: int1..1000000, note?: str)
resize_image(path: str, width: int1..4096, height: int1..4096, keep_ratio: bool, format: png|jpeg|webp)
schedule_job(command: str, cron: /[0-9*]{1,2} [0-9*]{1,2} \\* \\* \\*/, retries: int0..5)
lookup_word(word: str, language: en|de, senses: int1..5)
track_parcel(carrier: str, number: /[A-Z]{2}[0-9]{9}[A-Z]{2}/)
rate_product(id: uuid, stars: int1..5, text?: str, recommend: bool)
open_ticket(title: str, severity: low|medium|high, component: str, steps: str[1..3])
add_to_cart(sku: /[A-Z]{2}-[0-9]{4}/, quantity: int1..20, gift: bool)
find_route(origin: {lat: num-90..90, lon: num-180..180}, target: {lat: num-90..90, lon: num-180..180}, by: car|foot)
read_file(path: str, first_line?: int1..1000, last_line?: int1..1000)
edit_file(path: str, edits: {old: str, new: str, all: bool}[1..2])
list_folder(path: str, depth: int0..5, hidden: bool, kinds: file|folder|link[0..2])
run_tests(folder: str, pattern?: str, fail_fast: bool, workers: int1..16)
git_commit(message: str, files: str[1..3], amend: bool, author?: {name: str, email: email})
http_request(method: GET|POST|PUT|DELETE, path: str, headers?: <str>, timeout_s: num0..60)
plot(kind: line|bar|pie, title: str, x: num0..100[1..3], y: num0..100[1..3], log: bool)
roll_dice(sides: 4|6|8|12|20, count: int1..10, bonus?: int-9..9)
set_alarm(at: time, days: mon|wed|fri|sat|sun[1..3], sound: bell|radio, snooze: bool)
measure(device: uuid, quantity: voltage|current|power, samples: int1..100, interval_ms: int1..1000)
order_pizza(size: small|medium|large, toppings: ham|olives|onion[0..3], address: {street: str, number: int1..999})
score_essay(points: int0..100, strengths: str[1..2], weaknesses: str[1..2], passed: bool)
classify(text: str, label: positive|negative|neutral, confidence: num0..1)
extract_person(first_name: str, last_name: str, born?: date, email?: email, phones: /\\+[0-9]{8,12}/[0..2])
tag_photo(id: uuid, people: {name: str, box: int0..4096[4..4]}[0..2], place?: str)
unlock_door(door: front|back|garage, code: /[0-9]{4}/, seconds: int1..60)
move_robot(joint: base|arm|hand, angle: num-180..180, speed: num0..1)
chess_move(piece: king|queen|rook|knight|pawn, source: /[a-h][1-8]/, target: /[a-h][1-8]/, promotes?: queen|knight)
buy_shares(ticker: /[A-Z]{1,5}/, count: int1..1000, limit?: num0..10000, kind: market|limit)
start_vm(name: str, cores: 1|2|4|8, memory_gib: 2|4|8|16, zone: /eu-(north|west)-[1-3]/, spot: bool)
make_invoice(customer: str, lines: {what: str, count: int1..99, price: num0..999}[1..2], due: date, vat: num0..1)
mix_paint(colours: {red: int0..255, green: int0..255, blue: int0..255}[1..2], litres: num0..50)
ask_user(question: str, choices: str[2..3], several: bool)
remember(key: str, value: str, days?: int1..365)
calculate(left: num-1000..1000, operator: plus|minus|times|over, right: num-1000..1000)
water_plants(zones: int1..8[1..3], minutes: int1..60, skip_if_rain: bool)
"""
BODIES = """
pet: {id: int1..9999, name: str, kind: cat|dog|bird, tags: {id: int1..99, name: str}[0..2], status: sold|free}
order: {id: uuid, pet: int1..9999, quantity: int1..9, shipped: datetime?, complete: bool}
customer: {name: str, address: {street: str, city: str, zip: /[0-9]{5}/, country: /[A-Z]{2}/}, email: email}
article: {title: str, slug: /[a-z]{3,8}(-[a-z]{2,6}){0,2}/, tags: str[1..3], author: {name: str}, likes: int0..999}
comment: {id: uuid, author: str, text: str, at: datetime, edited: bool}
repository: {name: str, private: bool, stars: int0..99999, language: str?, license: MIT|GPL-3|none, topics: str[]}
issue: {number: int1..9999, title: str, state: open|closed, labels: {name: str, color: str}[0..2], owner: str?}
build: {id: int1..99999, branch: str, steps: {name: str, seconds: num0..999, ok: bool}[1..3], finished: datetime?}
invoice: {number: /INV-[0-9]{5}/, date: date, total: num0..99999, currency: EUR|NOK|USD, paid: bool}
payment: {id: uuid, method: card|transfer|cash, cents: int1..999999, card: {last4: /[0-9]{4}/, month: int1..12}?}
hotel: {name: str, stars: int1..5, rooms: {number: int1..999, beds: int1..4, price: num0..999}[1..2]}
flight: {number: /[A-Z]{2}[0-9]{3,4}/, from: /[A-Z]{3}/, to: /[A-Z]{3}/, departs: datetime, seats: <int0..300>}
station: {id: str, place: {lat: num-90..90, lon: num-180..180}, readings: {at: datetime, celsius: num-60..60}[1..2]}
recipe: {title: str, serves: int1..12, minutes: int1..99, ingredients: {what: str, grams: int1..9}[1..2], steps: str[]}
book: {isbn: /97[89][0-9]{10}/, title: str, authors: str[1..2], year: int1500..2030, pages: int1..3000}
film: {title: str, year: int1895..2030, genres: drama|comedy|horror|western[1..2], rating: num0..10, cast: <str>}
song: {title: str, seconds: int1..1200, artist: {name: str, country: /[A-Z]{2}/}, explicit: bool}
playlist: {name: str, owner: str, songs: {title: str, artist: str}[1..3], public: bool}
team: {name: str, city: str, players: {name: str, number: int1..99, position: goal|back|wing}[1..2]}
match: {home: str, away: str, score: int0..9[2..2], events: {minute: int1..120, what: goal|card}[0..2]}
patient: {id: uuid, born: date, blood: A|B|AB|O, allergies: str[0..2], smoker: bool}
prescription: {drug: str, dose_mg: num0..1000, times: time[1..2], until: date}
course: {code: /[A-Z]{3}[0-9]{3}/, title: str, credits: int1..30, teachers: {name: str, email: email}[1..2]}
exam: {course: str, at: datetime, questions: {text: str, choices: str[2..3], answer: int0..2}[1..2]}
server: {host: str, ip: ip, ports: int1..65535[1..3], os: linux|bsd, disks: {path: str, gib: int1..9999}[1..2]}
container: {image: str, command: str[0..2], env: <str>, ports: {inside: int1..65535, outside: int1..65535}[0..2]}
alert: {rule: str, severity: info|warning|critical, since: datetime, value: num0..100, labels: <str>}
log_line: {at: datetime, level: debug|info|error, logger: str, message: str, fields: <str>}
metric: {name: /[a-z]{3,8}_total/, kind: counter|gauge, help: str, samples: {labels: <str>, value: num0..1000}[1..2]}
webhook: {url: str, events: push|tag|release[1..3], secret: str?, active: bool}
token: {subject: str, scopes: read|write|admin[1..3], expires: datetime, issuer: str}
error: {error: {code: int400..599, message: str, details: {field: str, problem: str}[0..2]}}
page: {items: {id: int1..999, name: str}[0..3], next: str?, total: int0..9999}
feature: {type: Feature, geometry: {type: Point, coordinates: num-180..180[2..2]}, properties: <str>}
calendar: {name: str, zone: UTC|CET|EST, events: {title: str, start: datetime, end: datetime}[0..2]}
contact: {name: str, phones: {kind: home|work, number: /\\+[0-9]{8,12}/}[1..2], birthday: date?}
chat: {id: uuid, members: str[2..3], messages: {from: str, text: str, at: datetime}[1..2]}
shop: {name: str, open: {from: time, to: time}, products: {sku: str, price: num0..999, stock: int0..99}[1..2]}
car: {plate: /[A-Z]{2}[0-9]{5}/, make: str, year: int1950..2030, electric: bool, range_km: int50..900?}
sensor: {id: uuid, kind: door|motion|smoke, battery: int0..100, last: {at: datetime, on: bool}?}
loan: {amount: int100..999999, rate: num0..20, months: int1..360, borrower: {name: str, income: int0..999999}}
vote: {poll: uuid, choice: yes|no|blank, weight: num0..1, comment: str?}
job: {title: str, company: str, salary: {low: int0..999999, high: int0..999999}?, remote: bool, skills: str[1..3]}
survey: {id: uuid, answers: {question: int1..50, value: int1..5, why: str?}[1..3]}
tree: {species: str, height_m: num0..120, planted: date?, healthy: bool, place: {lat: num-90..90, lon: num-180..180}}
planet: {name: str, radius_km: num1..80000, moons: {name: str, radius_km: num1..3000}[0..2], rings: bool}
gene: {symbol: /[A-Z]{3,5}[0-9]/, chromosome: int1..22, start: int1..999999, strand: plus|minus}
molecule: {formula: /[A-Z][0-9]{0,2}([A-Z][0-9]{0,2}){0,3}/, grams_per_mole: num1..999, bonds: int0..9[2..2][0..2]}
matrix: {rows: int1..3, columns: int1..3, values: num-9..9[1..2][1..2]}
config: {debug: bool, paths: <str>, limits: {memory_mib: int1..99999, seconds: num0..3600}, plugins: str[]}
"""
RECURSIVE = """
node: {value: int0..99, left?: @node?, right?: @node?}
folder: {name: str, files: str[0..2], folders: @folder[0..1]}
comment: {author: str, text: str, replies: @comment[0..1]}
menu: {label: str, key: /[a-z]/, items: @menu[0..1]}
task: {title: str, done: bool, parts: @task[0..1]}
person: {name: str, born: int1900..2030, mother: @person?}
list: {head: int0..99, tail: @list?}
category: {id: int1..99, name: str, parent: @category?}
expression: {operator: plus|minus, left: int0..99, right: @expression?}
element: {tag: div|span|p, text: str?, children: @element[0..1]}
route: {stop: str, minutes: int1..60, then: @route?}
part: {sku: /[A-Z]{2}[0-9]{3}/, count: int1..9, made_of: @part[0..1]}
region: {name: str, people: int0..999999, regions: @region[0..1]}
rule: {field: str, test: is|is_not, value: str, and?: @rule}
quiz: {question: str, yes: @quiz?, no: @quiz?}
error: {message: str, cause: @error?}
species: {name: str, rank: order|family|genus, below: @species[0..1]}
box: {colour: red|green|blue, holds: @box?}
manager: {name: str, reports: @manager[0..1]}
chapter: {title: str, pages: int1..99, sections: @chapter[0..1]}
"""


def _text(**more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": TEXT_LENGTH} | more


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


@dataclass
class _Short:
    """The short form of one schema."""

    rest: str

    def type(self) -> dict[str, Any]:
        schema = self._one()
        while (sign := self._peek()) in ("[", "?"):
            self._take()
            if sign == "?":
                schema = {"anyOf": [schema, {"type": "null"}]}
                continue
            least, most = (self._take() + "..").split("..")[:2] if self._peek() != "]" else ("0", str(LIST_LENGTH))
            schema = {"type": "array", "items": schema, "minItems": int(least), "maxItems": int(most)}
            self._take()
        return schema

    def members(self, end: str) -> dict[str, Any]:
        properties, required = dict[str, Any](), list[str]()
        while self._peek() != end:
            name = self._take()
            if self._peek() == "?":
                self._take()
            else:
                required.append(name)
            self._take()  # the colon
            properties[name] = self.type()
            if self._peek() == ",":
                self._take()
        self._take()
        return _object(properties, required)

    def _one(self) -> dict[str, Any]:
        token = self._take()
        if token == "{":
            return self.members("}")
        if token == "<":
            values = self.type()
            self._take()
            return {"type": "object", "additionalProperties": values, "maxProperties": 2}
        if token == "@":
            return {"$ref": f"#/$defs/{self._take()}"}
        if token.startswith("/"):
            return {"type": "string", "pattern": f"^{token[1:-1]}$"}
        if token in ("int", "num") or re.match(r"(int|num)\d", token):
            return self._number(token)
        if token in ("str", "bool"):
            return _text() if token == "str" else {"type": "boolean"}
        if token in _FORMATS:
            return {"type": "string", "format": _FORMATS[token]}
        words = [token]
        while self._peek() == "|":
            self._take()
            words.append(self._take())
        return {"enum": [int(word) if word.isdigit() else word for word in words]}

    def _number(self, token: str) -> dict[str, Any]:
        low, high = (token[3:] + self._take()).split("..")
        kind = {"int": "integer", "num": "number"}[token[:3]]
        return {"type": kind, "minimum": json.loads(low), "maximum": json.loads(high)}

    def _peek(self) -> str:
        found = _TOKEN.match(self.rest)
        return found[1] if found else ")"

    def _take(self) -> str:
        found = _TOKEN.match(self.rest)
        assert found, self.rest
        token = found[1]
        # int1..9 is read as int and 1..9.
        if split := re.match(r"(int|num)(?=-?\d)", self.rest.lstrip()):
            token, self.rest = split[1], self.rest.lstrip()[3:]
            return token
        self.rest = self.rest[found.end() :]
        return token


def short(text: str) -> dict[str, Any]:
    """The schema that a short form stands for."""
    return _Short(text).type()


def _functions() -> Iterator[tuple[str, str, Any]]:
    for line in FUNCTIONS.strip().splitlines():
        name, rest = line.split("(", 1)
        arguments = short("{" + rest.rstrip()[:-1] + "}")
        question = f"Call the function {name} with invented arguments, as JSON."
        yield "function", question, arguments
        call = _object({"name": {"const": name}, "arguments": arguments})
        yield "call", question, call


def _bodies() -> Iterator[tuple[str, str, Any]]:
    for line in BODIES.strip().splitlines():
        name, rest = line.split(": ", 1)
        yield "body", f"Invent a {name}, as JSON.", short(rest)


def _recursive() -> Iterator[tuple[str, str, Any]]:
    for line in RECURSIVE.strip().splitlines():
        name, rest = line.split(": ", 1)
        defined = {"$defs": {name: short(rest)}}
        yield "recursive", f"Invent a small {name}, as JSON.", {**defined, "$ref": f"#/$defs/{name}"}


def _nested() -> Iterator[tuple[str, str, Any]]:
    bodies = [short(line.split(": ", 1)[1]) for line in BODIES.strip().splitlines()]
    for depth in range(1, 9):
        inner: dict[str, Any] = _object({"value": {"type": "integer", "minimum": 0, "maximum": 9}})
        for level in range(depth):
            inner = _object({"level": {"const": level}, "inner": inner})
        yield "nested", f"An object in {depth} others, as JSON.", inner
    for i in range(0, 24, 2):
        either = {"anyOf": [_object({"kind": {"const": k}, "it": bodies[i + k]}) for k in (0, 1)]}
        yield "union", "Invent one of the two things, as JSON.", either
        pair = {"type": "array", "prefixItems": [bodies[i], {"type": "boolean"}], "items": False, "minItems": 2}
        if i % 4 == 0:
            yield "tuple", "Invent a thing and whether you like it, as JSON.", pair


_MIXED: tuple[dict[str, Any], ...] = (
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 10},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": ["integer", "string"], "maxLength": 8, "minimum": 0, "maximum": 99},
    {"type": "string", "minLength": 4, "maxLength": 12, "pattern": "^[a-z]+$"},
    {"type": "string", "pattern": "^(re: |fwd: )?[A-Z][a-z]{2,9}( [a-z]{2,9}){0,3}$"},
    {"enum": ["a", 1, 2.5, None, True, {"x": [1]}, [], "\u00fc", "\U0001f600"]},
    {"const": {"deep": [{"er": None}]}},
    {"type": "object", "patternProperties": {"^x-[a-z]{1,5}$": _text()}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}, "maxProperties": 2},
    {"allOf": [_object({"a": {"type": "boolean"}}) | {"additionalProperties": True}, {"required": ["a"]}]},
    {"oneOf": [_object({"ok": {"const": True}}), _object({"ok": {"const": False}, "why": _text()})]},
    {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    _object({"a": {"type": "integer", "minimum": 0, "maximum": 5}, "b": {"type": "null"}}, []),
    _object({"gr\u00f6\u00dfe": {"type": "boolean"}, 'a "quoted" name': {"type": "boolean"}, "\u65e5": _text()}),
    {
        "type": "array",
        "items": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 2, "maxItems": 2},
        "maxItems": 3,
    },
    {"title": "T", "description": "D", "examples": [1], "default": 1, "type": "boolean", "x-order": 3},
)
REFUSED: tuple[dict[str, Any], ...] = (
    {"not": {"type": "string"}},
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"type": "array", "contains": {"const": 1}},
    {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "object", "unevaluatedProperties": False},
    {"$ref": "https://example.org/other.json"},
    {"type": "string", "nullable": True},
    {"type": "string", "format": "credit-card"},
    {"type": "string", "pattern": "^(?=.*[0-9]).{4,}$"},
    {"type": "string", "pattern": "(.)\\1"},
)


def all_schemas() -> list[tuple[str, str, Any]]:
    """(kind, question, schema) of each; those of the kind "refused" cannot be held to."""
    found = [*_functions(), *_bodies(), *_recursive(), *_nested()]
    found += [("mixed", "An example, as JSON.", schema) for schema in _MIXED]
    return found + [("refused", "An example, as JSON.", schema) for schema in REFUSED]


if __name__ == "__main__":
    for kind, question, schema in all_schemas():
        print(json.dumps({"kind": kind, "question": question, "schema": schema}))

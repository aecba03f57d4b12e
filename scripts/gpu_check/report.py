"""The end of a call: its parts, then its figures against what the card can do."""

# Kernels that take less than this share of a step are in the JSON alone.
SHOWN = 0.01


def ceilings(parts):
    """Bytes and operations per second of the card at hand, as this call measured them."""
    figures = {figure["figure"]: figure for part in parts if part["part"] == "ceilings" for figure in part["figures"]}
    rate = lambda name, key: figures.get(name, {}).get(key)  # noqa: E731
    return rate("copy", "bytes_per_second"), rate("product", "operations_per_second")


def add_floors(parts):
    """Gives figures with known work the time that the ceilings ask for, and the share of theirs that it is."""
    byte_rate, operation_rate = ceilings(parts)
    for part in parts:
        for figure in part["figures"]:
            floors = [figure[work] / rate for work, rate in [("bytes", byte_rate), ("operations", operation_rate)]
                      if rate and figure.get(work)]
            if floors and figure.get("seconds"):
                figure["floor_seconds"] = max(floors)
                figure["share_of_floor"] = max(floors) / figure["seconds"]


def summarize(results):
    """Prints the summary and completes the JSON file."""
    add_floors(results.parts)
    results.write()
    lines = ["", "parts"]
    for part in results.parts:
        note = f"  {part['note'][:90]}" if part["note"] else ""
        lines.append(f"  {part['part']:<26} {part['result']:<16} {part['seconds']:6.1f} s{note}")
    lines += ["", f"  {'figures':<52} {'µs':>10} {'floor µs':>9} {'share':>6} {'M tokens/s':>10}"]
    for part in results.parts:
        lines += [line for figure in shown(part["figures"]) if (line := figure_line(part["part"], figure))]
    byte_rate, operation_rate = ceilings(results.parts)
    if byte_rate and operation_rate:
        lines.append(f"  floors: {byte_rate / 1e12:.2f} TB/s, {operation_rate / 1e12:.0f} TFLOP/s, measured in this call")
    failed = results.failed()
    lines += ["", f"{results.seconds:.0f} s; " + (f"FAILED: {', '.join(failed)}" if failed else "nothing failed")]
    results.say("\n".join(lines))


def shown(figures):
    total = next((figure["seconds"] for figure in figures if figure["figure"] == "all kernels"), 0)
    return [figure for figure in figures if "launches" not in figure or figure["seconds"] >= SHOWN * total]


def figure_line(part, figure):
    """A figure in one line; what is no time, by its own words."""
    name = f"{part}: {figure['figure']}"
    if not any(isinstance(figure.get(key), (int, float)) for key in ("seconds", "tokens_per_second")):
        known = {key: value for key, value in figure.items() if key != "figure"}
        words = ", ".join(f"{key} {short(value)}" for key, value in known.items())
        return f"  {name:<40} {words}"[:150]
    number = lambda key, scale, form: format(figure[key] * scale, form) if figure.get(key) else ""  # noqa: E731
    return (f"  {name:<52.52} {number('seconds', 1e6, '10.1f'):>10} {number('floor_seconds', 1e6, '9.1f'):>9} "
            f"{number('share_of_floor', 100, '5.0f'):>5}{'%' if 'share_of_floor' in figure else ' '} "
            f"{number('tokens_per_second', 1e-6, '10.3f'):>10}").rstrip()


def short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)

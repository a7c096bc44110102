"""The identifiers of licences that the Hugging Face hub knows, and the names that people write for them."""

from __future__ import annotations

import re

_LISTED = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research
    isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl
    ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib
"""

IDENTIFIERS = frozenset(_LISTED.split())

NAMES = {
    "apache license 2.0": "apache-2.0",
    "apache 2.0": "apache-2.0",
    "mit license": "mit",
    "creativeml openrail m": "creativeml-openrail-m",
    "creativeml open rail m": "creativeml-openrail-m",
    "creativeml open rail++ m": "openrail++",
    "creativeml open rail++ m license": "openrail++",
    "open rail++ m license": "openrail++",
    "cc0 1.0": "cc0-1.0",
    "cc by 4.0": "cc-by-4.0",
    "cc by nc 4.0": "cc-by-nc-4.0",
    "cc by sa 4.0": "cc-by-sa-4.0",
    "cc by nc sa 4.0": "cc-by-nc-sa-4.0",
}
"""Names as people write them, in small letters and with spaces -> the identifier."""


def identifier_of(text: str) -> str:
    """Return the hub's identifier of a licence; empty where a text is none of those, or is about several."""
    plain = text.strip().lower()
    if plain in IDENTIFIERS:
        return plain
    return NAMES.get(re.sub(r"[\s_-]+", " ", plain), "")

"""Words and patterns by which an option's letter is known, and by which an answer declares or rejects it.

`stated_option` reads answers with them. A pattern that looks at what stands before a letter ends in `$`; the others are
matched at the place behind it.
"""

from __future__ import annotations

import re

from megatron_v2pe.evaluate.scorers.stated_answer import CUE

WORD_LETTERS = frozenset("AI")
OPENING, CLOSING = "([{<【「『\"'“‘", ")]}>】」』\"'”’"
BEFORE_WORDS = frozenset(
    """is be are was were it's that's option options choice choices answer answers letter letters choose chose choosing
    pick picked select selected selecting with for think say said guess believe so thus therefore hence to as but just
    only leaves leaving remains would by of on either both between and or neither nor not than over unlike out from then
    while whereas because since although if eliminate eliminated exclude excluded reject rejected ruling final correct
    right best about that also maybe perhaps probably however where when except versus vs consider considering
    comparing called labelled labeled marked no yes isn't wasn't aren't finally still like against""".split()
)
AFTER_WORDS = frozenset(
    """is was are were has have had because since as and or nor but over rather instead not which shows show then here
    seems looks fits fit matches match would should must cannot can could does doesn't isn't wasn't with to if than
    while whereas although though best correct right wrong incorrect too also either instead unlike only alone being
    describes represents corresponds contains remains due may might won't can't will did didn't do don't fails lacks
    both all look seem says it""".split()
)
AFTER_A = frozenset(
    """is was has because since and or nor but over rather not shows seems looks fits matches would should must cannot
    does doesn't isn't wasn't could corresponds describes fails lacks unlike instead although while whereas""".split()
)
ITEM = r"(?:^|\n)[ \t]*(?:[-*•][ \t]*)?(?:option[ \t]+|选项)?[(\[]?"
JOINT = re.compile(
    r"[\"')\]”】]*\s*(?P<word>,?\s*(?:and|or|nor|&|/|\+|vs\.?|versus)\s*(?:also|maybe|perhaps|possibly|even|not)?\s*"
    r"|、|和|或者?|与|及|以及|跟|还是|,)\s*(?:the\s+)?(?:options?|choices?|letters?|选项)?\s*[\"'(\[“【]*",
    re.IGNORECASE,
)
TEXT_JOINT = re.compile(r"\s*(?:,\s*)?(?:or|nor|and|或者?|和|、)\s*(?:an?\s|the\s)?\s*")
ONE_REJECTED = re.compile(
    r"[\"')\]”】]*\s+(?:(?:does|is|was|has)(?:\s+not\b|n't\b)|fails\b|lacks\b|is\s+(?:wrong|incorrect|false)\b)", re.I
)
"""A verb that speaks of one option, not of all of a group."""
COMMA_LIST_ENDS = re.compile(r"[\"')\]”】]*\s*(?:$|[.!?。\n]|are\b|were\b|do\b|都|均|选项)")
NO_LIST = re.compile(
    r"(?:unlike|instead\s+of|rather\s+than|compared\s+(?:to|with)|while|if|比起|相比|与|和|不像)\s*\W*$", re.IGNORECASE
)
_THE_OPTION = r"(?:\s*(?:the|a|an|option|choice|answer|letter|选项|both|either|all|be|of|out)s?\b)*\s*[(\[\"'“【]*$"
REJECTING = re.compile(
    r"(?:\b(?:not|never|neither|nor|than|over|unlike|instead\s+of|rul(?:e|ed|es|ing)\s+out|eliminat\w+|"
    r"exclud\w+|reject\w*|discard\w*|dismiss\w*|except(?:\s+for)?|versus|vs\.?|against|without|no|"
    r"compared\s+(?:to|with)|opposed\s+to|cannot\s+be|far\s+from|"
    r"(?:not|never)\s+(?:to\s+)?(?:choose|pick|select|go\s+(?:with|for)|opt\s+for)|(?:anything|everything|all|any)\s+but)|n't(?:\s+(?:be|choose|pick|select|go\s+(?:with|for)|opt\s+for))?"
    r"|不会?是|不应?选|不能选|不为|并非|而非|比起|比选?|相比于|不同于|不像|不可能是|排除了?|除了|没有|不包括)"
    + _THE_OPTION,
    re.IGNORECASE,
)
_ADVERBS = r"(?:\s*\b(?:all|both|clearly|definitely|obviously|also|simply|therefore|thus|just|then|\w+ly)\b)*"
_BE = (
    r"(?:\s*,?\s*(?:which|who|that))?\s*(?:\b(?:is|are|was|were|seems?|looks?|must\s+be|would\s+be|should\s+be|can\s+be|"
    r"could\s+be|to\s+be|being|has\s+been|have\s+been)\b|'s\b)"
)
_CLAUSE_ENDS = r"(?=\W*(?:$|[.,;!?\n]|\s(?:because|since|as)\b))"
# `A. not visible`, `(A) False`: behind a mark an adjective is the option's text; a verb or an arrow makes it a verdict.
REJECTED = re.compile(
    rf"[\"')\]”】]*(?:{_BE}{_ADVERBS}\s*(?:the\s+|an?\s+)?(?:\bincorrect|\bwrong\b|\bfalse\b|inaccurate|\binvalid|\bnot\b|"
    r"ruled\s+out|eliminated|excluded|impossible|\bout\b|unlikely|implausible|irrelevant|mistaken|distractors?\b|"
    r"rejected|dismissed|discarded)"
    r"|\s+(?:(?:do|does|did|can|could|would|should|has|have|is|are|was|were|will)(?:\s+not\b|n't\b)|cannot\b|can't\b|"
    r"fails?\b|lacks?\b|won't\b|contradicts?\b)"
    rf"|\s*(?:->|→|[-–—:=])\s*(?:incorrect|wrong)\b{_CLAUSE_ENDS}|[.:]*\s*(?:✗|✘|❌|×)"
    r"|\s*(?:选项|项|答案)?\s*(?:都|均|也|是|显然|明显|则|就)*\s*(?:不对|不正确|错误|错|不符|不是|不成立|有误|不合|不可能|"
    r"可?以?排除|不选|不满足|不准确|不属于|不能|不同|相比))"
    rf"|\s+(?:incorrect|wrong)\b{_CLAUSE_ENDS}",
    re.IGNORECASE,
)
CORRECT = re.compile(
    rf"[\"')\]”】.:]*(?:\s*(?:\b(?:is|are|was|must\s+be|would\s+be|should\s+be|seems|looks)\b|'s\b){_ADVERBS}\s*"
    r"(?:the\s+)?(?:(?:most\s+)?(?:correct|right|accurate|appropriate|suitable)|true|best|answer|only\s+(?:correct|right)|"
    r"closer|closest|(?:a\s+)?better|(?:most|more)\s+likely)\b|\s+remains\b"
    r"|\s*(?:->|→|[-–—:=])?\s*(?:✓|✔|✅|√|correct\b)|\s*(?:->|→|[-–—:=])\s*right\b"
    r"|\s*(?:选项|项)?\s*(?:是|为)?(?:正确|对的|对(?!于|应|比)|[更最](?:合适|符合|恰当|准确)|符合题意))",
    re.IGNORECASE,
)
_CHOOSE = (
    r"(?:\b(?:choose|chose|choosing|select(?:ed)?|selecting|pick(?:ed)?|picking|go(?:ing)?\s+(?:with|for)|opt(?:ed)?\s+for|"
    r"vote\s+for|answer\s+with)\b(?:\s*:)?"
    r"|\b(?:option|choice|selection|pick|guess|vote)\s*(?:is|was|would\s+be|should\s+be|must\s+be|:|=)\s*:?"
    r"|\b(?:best|correct|right)(?:\s+(?:one|match|fit|letter))?\s+(?:is|would\s+be)\s*:?"
    r"|(?:应该?选择?|故选择?|所以选择?|因此选择?|本题选择?|我选择?|选择?|选项[是为]|应[为该]是?|而是|选项:)\s*:?)"
)
DECLARED = re.compile(
    rf"(?:{CUE.pattern}|{_CHOOSE}|(?:^|[.!?;\n]\s*)(?:so|thus|therefore|hence|consequently|final|so,?\s+it\s+is)\b[,:]?"
    r"|,\s*(?:but\s+)?(?:probably|likely|(?:most|more)\s+likely)\b)"
    r"(?:\s*(?:clearly|most\s+likely|likely|probably|definitely|obviously|thus|therefore|simply|indeed|"
    r"(?:the\s+)?(?:correct\s+)?(?:option|choice|letter)|the|选项|:)\b:?)*\s*[(\[\"'“【<]*$",
    re.IGNORECASE,
)
CUED = re.compile(r"(?:\b(?:option|choice|answer|letter)s?|选项|答案|选择?)\s*:?\s*[(\[\"'“]*$", re.IGNORECASE)
SUPPOSED = re.compile(
    r"(?:\bif\b|\bhad\b|\bwere\b|如果|假如)[^.!?\n。]*\bwould\b[^.!?\n。]*$|如果[^.!?\n。]*$", re.IGNORECASE
)
LEADING = re.compile(
    r"[\"')\]”】]*(?:\s*$|[.):,、;\]]|\s*\n|\s*[-–—:→(]|\s+(?:because|since|as|due\s+to)\b|\s*[,]?因为)"
)
VERDICT_RIGHT = re.compile(r"(?<!in)(?<!not )\b(?:correct|right|true)\b|✓|✔|✅|√|(?<!不)正确", re.IGNORECASE)
VERDICT_WRONG = re.compile(
    r"\bincorrect\b|\bwrong\b|\bfalse\b|\bnot\s+(?:correct|right|true)\b|✗|✘|❌|×|不正确|错误|不对|不符", re.IGNORECASE
)

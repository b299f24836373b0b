"""Whether an answer only declines the request: it is short, begins with a refusal and does not help all the same.

The beginning decides, so that a letter, a tale or a talk about refusals is none; ten languages.
"""

import re
from typing import NamedTuple

_LONGEST = 1000  # bytes; more than this is an answer, whatever its first words are
_OFFER = 240  # bytes of a closing offer to help with something else
_BETWEEN = r"[\s,.;:!，。、！…—–-]*"


class _Language(NamedTuple):
    """Regular expressions in lower case, of what a refusal consists of."""

    regrets: str  # may come first
    is_ai: str  # a model that says what it is
    declines: str  # alone, or after either of them
    lacks: str  # what declines only after a model has said what it is
    but: str  # announces an answer all the same ...
    offers: str  # ... unless it only offers one to another question


_LANGUAGES = (
    _Language(
        regrets=r"(?:i(?:'m| am) )?(?:\w+ )?sorry|(?:my )?apologies|i apologi[sz]e|unfortunately|regrettably|well|but"
        r"|thank(?: you|s)(?: for [^.!\n]{1,60})?|i understand [^.!\n]{1,80}",
        is_ai=r"as an? (?:[\w-]+ ){0,4}?(?:ai|artificial intelligence|language model|chatbot|assistant)"
        r"(?: (?:language|model|assistant|system|chatbot|program))*(?: (?:created|developed|trained) by \w+)?",
        declines=r"i(?:'m| am)? ?(?:can't|cannot|can not|won't(?: be able to)?|will not(?: be able to)?"
        r"|(?:not able|unable) to|not (?:allowed|permitted|programmed|authori[sz]ed|designed) to) (?:\w+ly )?"
        r"(?:help(?! but| myself| \w+ing\b)|assist|fulfil|comply|provide|do (?:that|this)\b|answer|write|create"
        r"|generate|give (?!up|in)|share|support|engage|participate|offer|discuss|produce|condone|complete|respond"
        r"|access|browse|promote|facilitate|encourage|endorse|disclose|reveal|look up|view|accommodate"
        r"|perform|summari[sz]e|convert|translate|display|handle|determine|continue without"
        r"|regenerate|recall|retrieve|choose between|send (?:an )?e?mails?)"
        r"|i (?:must|have to|will have to) (?:\w+ly )?(?:decline|refuse)"
        r"|it (?:is|would be|'s) (?:not appropriate|inappropriate|not ethical|unethical|against my \w+) "
        r"|it goes against my |i (?:do not|don't) feel comfortable "
        r"|(?:this|that|your) request (?:violates|goes against) ",
        lacks=r"i (?:can't|cannot|can not|do not|don't|have no|lack|am not|won't|will not)|i'm not",
        but=r"\b(?:but|however|that said|nevertheless|yet|still|instead)\b",
        offers=r"(?:i(?:'d| would| can| could|'ll|(?:'m| am) (?:\w+ )?(?:happy|here|glad|ready|able))"
        r"|feel free|please|if (?:you|there)|let me|is there)\b",
    ),
    _Language(
        regrets=r"(?:es )?tut mir (?:\w+ )?leid|entschuldig(?:ung|e|en sie)|verzeihung|leider|bedauerlicherweise|aber"
        r"|danke[^.!\n]{0,60}",
        is_ai=r"als (?:eine? )?(?:[\w-]+ ){0,2}?(?:ki|ai|künstliche intelligenz|sprachmodell)[\w-]*",
        declines=r"(?:(?:das|dies|dabei|damit|dazu|hierbei) )?"
        r"(?:ich (?:kann|darf|werde|möchte)|(?:kann|darf|werde) ich)"
        r"(?: [^.!?\n,]{1,80}?)? (?:nicht|keine?[nrms]?)\b[^.!?\n]{0,80}?\b(?:helfen|weiterhelfen|unterstützen|erfüllen"
        r"|beantworten|antworten|geben|erstellen|schreiben|anbieten|bereitstellen|nachkommen|teilen|verraten|liefern"
        r"|nennen|sagen|zugreifen|entsprechen|fördern)\b"
        r"|(?:ich bin|bin ich) [^.!?\n]{0,20}?nicht (?:in der lage|befugt|berechtigt)"
        r"|(?:ich muss|muss ich) [^.!?\n]{0,60}?ablehnen",
        lacks=r"(?:kann|habe|darf|bin|verfüge|besitze) ich [^.!?\n]{0,40}?(?:nicht|keine?[nrms]?)\b",
        but=r"\b(?:aber|jedoch|allerdings|dennoch|trotzdem|stattdessen)\b",
        offers=r"(?:ich|kann ich|helfe ich|gern|wenn|falls|bitte)\b",
    ),
    _Language(
        regrets=r"(?:je suis )?(?:\w+ )?désolée?|excuse[sz]?-moi|pardon|malheureusement|je (?:le )?regrette|mais"
        r"|merci[^.!\n]{0,60}",
        is_ai=r"en tant qu(?:e |')(?:une? )?(?:ia|ai|intelligence artificielle|modèle (?:de langage|linguistique)"
        r"|assistant)[^,.\n]{0,40}",
        declines=r"je ne (?:peux|pourrai|saurais) (?:\S+ ){0,4}?(?:aider|assister|répondre|fournir|accéder|satisfaire"
        r"|écrire|rédiger|créer|générer|donner|partager|effectuer|traiter|divulguer)\b"
        r"|je ne suis pas (?:en mesure|capable|autorisée?|programmée?)|il (?:ne )?m'est (?:pas possible|impossible)"
        r"|je (?:dois|préfère) (?:refuser|décliner)|je n'ai pas accès",
        lacks=r"je n(?:e |')[^.!?\n]{0,40}?\bpas\b",
        but=r"\b(?:mais|cependant|toutefois|néanmoins)\b",
        offers=r"(?:je|n'hésite[sz]?|si (?:vous|tu)|puis-je)\b",
    ),
    _Language(
        regrets=r"lo siento(?: mucho)?|disculp[ae]n?|perdon[ae]n?|perdón|lamentablemente|desafortunadamente|pero"
        r"|gracias[^.!\n]{0,60}",
        is_ai=r"como (?:una? )?(?:ia|ai|inteligencia artificial|modelo (?:de (?:lenguaje|ia)|lingüístico)|asistente)"
        r"[^,.\n]{0,40}",
        declines=r"no (?:puedo|podré) (?:\S+ ){0,2}?(?:ayudar|asistirte|cumplir|responder|proporcionar|acceder|escribir"
        r"|crear|generar|dar|compartir|ofrecer|realizar|completar|redactar|facilitar)(?:te|le|les|lo|los|la|las)?\b"
        r"|no (?:soy capaz|me es posible|me está permitido|estoy (?:autorizad|programad)[oa]|tengo (?:acceso|permiso))"
        r"|debo (?:rechazar|declinar)",
        lacks=r"no (?:tengo|puedo|soy|poseo|dispongo|siento)\b",
        but=r"\b(?:pero|sin embargo|no obstante|en cambio)\b",
        offers=r"(?:te puedo|puedo|podría|estaré|estoy|con gusto|si|no dudes|por favor)\b",
    ),
    _Language(
        regrets=r"mi (?:di)?spiace(?: molto)?|scus(?:a|i|ami|ate)|purtroppo|sfortunatamente|ma|grazie[^.!\n]{0,60}",
        is_ai=r"(?:come|in quanto|essendo) (?:una? |un')?(?:ia|ai|intelligenza artificiale|modello (?:linguistico"
        r"|di linguaggio)|assistente)\b(?: \w+al\w*)?",
        declines=r"non (?:posso|potrò) (?:\S+ ){0,2}?(?:aiutar|assister|soddisfare|risponder|fornir|accedere|scriver"
        r"|creare|generare|dare|condivider|offrir|eseguire|completare)\w*"
        r"|non (?:sono in grado|mi è possibile|sono (?:autorizzat|programmat)[oa]|ho (?:accesso|il permesso))"
        r"|devo (?:rifiutare|declinare)",
        lacks=r"non (?:ho|posso|sono|possiedo|provo|dispongo)\b",
        but=r"\b(?:ma|tuttavia|però|invece)\b",
        offers=r"(?:posso|potrei|sarei|sono|se|non esitare|per favore)\b",
    ),
    _Language(
        regrets=r"(?:me )?desculp[ae](?:-me)?|peço desculpas?|sinto muito|lamento|infelizmente|mas"
        r"|obrigad[oa][^.!\n]{0,60}",
        is_ai=r"como (?:uma? )?(?:ia|ai|inteligência artificial|modelo de (?:linguagem|ia)|assistente)[^,.\n]{0,40}",
        declines=r"não (?:posso|poderei|consigo) (?:\S+ ){0,2}?(?:ajudar|auxiliar|atender|responder|fornecer|acessar"
        r"|aceder|escrever|criar|gerar|dar|compartilhar|partilhar|oferecer|realizar|cumprir|completar)\b"
        r"|não (?:sou capaz|me é possível|estou autorizad[oa]|fui programad[oa]|tenho (?:acesso|permissão))"
        r"|(?:devo|tenho de|tenho que) (?:recusar|declinar)",
        lacks=r"não (?:tenho|posso|sou|possuo|sinto|consigo|disponho)\b",
        but=r"\b(?:mas|no entanto|porém|contudo|entretanto)\b",
        offers=r"(?:posso|terei|ficarei|estou|estarei|se|fique|por favor)\b",
    ),
    _Language(
        regrets=r"(?:非常|很|十分)?(?:抱歉|对不起|對不起|遗憾|遺憾|不好意思)(?:的是)?|谢谢[^。！\n]{0,30}|但是?",
        is_ai=r"(?:作为|作為)(?:一[个個款])?(?:人工智能|ai|大?(?:语言|語言)模型)[^，。\n]{0,10}",
        declines=r"我(?:无法|無法|不能|不可以|没有办法|没办法|不便|无权)[^，。\n]{0,8}?"
        r"(?:帮助|帮您|协助|協助|提供|回答|满足|滿足|访问|查看|撰写|写|生成|完成您|处理|执行|给出|告诉|透露|分享|支持)",
        lacks=r"我(?:没有|沒有|无法|無法|不能|不会|不具备|不是)",
        but=r"但是?|不过|不過|然而",
        offers=r"我(?:可以|能|很乐意|愿意)|如果|请",
    ),
    _Language(
        regrets=r"(?:大変)?申し訳(?:ありません|ございません)(?:が)?|すみません(?:が)?|ごめんなさい|恐れ入りますが"
        r"|残念ながら",
        is_ai=r"(?:私は)?(?:ai|人工知能|(?:大規模)?言語モデル)[^、。\n]{0,10}?"
        r"(?:として|である私は|なので|ですので|のため)(?:、?私は)?",
        declines=r"[^。\n「」]{0,40}?"
        r"(?:お応え|お答え|お手伝い|対応|提供|お教え|アクセス|作成|生成|書|表示|見る|回答|実行)"
        r"[^。\n「」]{0,8}?(?:できません|出来ません|かねます|けません)",
        lacks=r"[^。\n「」]{0,40}?(?:ません|かねます)",
        but=r"^が|けれど|しかし|ただし|ですが",
        offers=r"(?:他|別|ほか)の|もし|よろしければ|お気軽",
    ),
    _Language(
        regrets=r"(?:대단히 )?죄송(?:합니다만|합니다|하지만|해요)|미안(?:합니다|하지만|해요)"
        r"|안타깝(?:게도|지만)|유감스럽(?:게도|지만)",
        is_ai=r"(?:저는 )?(?:ai|인공지능|인공 지능|언어 모델)[^,.\n]{0,12}?"
        r"(?:으로서|로서|이므로|이기 때문에|인 저는|라서|이라)(?:,? 저는)?",
        declines=r"[^.\n\"“”]{0,40}?"
        r"(?:도와|대답|답변|알려|수행|접속|제공|작성|볼|내릴|공유|생성|처리|응할)[^.\n\"“”]{0,6}?"
        r" 수(?:가|는)? 없(?:습니다|어요)",
        lacks=r"[^.\n]{0,40}?(?:없습니다|않습니다|못합니다|없어요)",
        but=r"하지만|그러나|다만|지만",
        offers=r"다른|기꺼이|제가|혹시|원하시면",
    ),
    _Language(
        regrets=r"извините|простите|прошу прощения|приношу (?:свои )?извинения|(?:мне )?(?:очень )?жаль"
        r"|к сожалению|увы|но|спасибо[^.!\n]{0,60}",
        is_ai=r"(?:как|будучи) (?:большая )?(?:ии|искусственн\w+ интеллект\w*|языков\w+ модел\w+|ассистент\w*)"
        r"[^,.\n]{0,30}",
        declines=r"я не (?:могу|смогу) (?:\S+ ){0,3}?(?:помочь|выполнить|ответить|дать|предоставить|написать|создать"
        r"|поделиться|обсуждать|показать|сказать|ставить|получить|открыть)\b"
        r"|я не (?:в состоянии|вправе|имею (?:доступа|возможности|права))|у меня нет (?:доступа|возможности|права)"
        r"|я (?:вынужден|вынуждена|должен|должна) (?:отклонить|отказать)",
        lacks=r"я не |у меня нет ",
        but=r"\b(?:но|однако|тем не менее)\b",
        offers=r"(?:я|если|пожалуйста|с удовольствием)\b",
    ),
)


def _begins(language: _Language) -> re.Pattern[str]:
    regrets = f"(?:(?:{language.regrets})(?![a-zß-ÿа-яё]){_BETWEEN})*+"
    after_ai = f"(?:{language.is_ai}){_BETWEEN}{regrets}(?:{language.declines}|{language.lacks})"
    return re.compile(f"{regrets}(?:{after_ai}|{language.declines})")


_RULES = [
    (_begins(language), re.compile(f"(?:{language.but}){_BETWEEN}(?P<offer>{language.offers})?"))
    for language in _LANGUAGES
]
# Two items of a list, a code block, or a line that announces what follows.
_HELPS = re.compile(
    r"^[ \t]*(?:[-*•]|\d+[.)、])[ \t][^\n]*\n(?:.*\n)*?[ \t]*(?:[-*•]|\d+[.)、])[ \t]|```|[:：]\s*\n", re.M
)


def found(text: str) -> str | None:
    """The words with which an answer declines and goes no further; None if it does not."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > _LONGEST or _HELPS.search(text):
        return None
    text = " ".join(text.lower().replace("\u2019", "'").replace("**", "").lstrip("_># \t\n").split())
    for begins, but in _RULES:
        if declined := begins.match(text):
            rest = text[declined.end() :]
            other = but.search(rest)
            if other is None:
                return declined[0]
            ending = rest[other.start() :]
            if other["offer"] and len(ending.encode("utf-8", "surrogatepass")) < _OFFER and ":" not in ending:
                return declined[0]
            return None
    return None

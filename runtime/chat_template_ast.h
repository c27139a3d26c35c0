// A parsed template: nodes in two arrays, naming each other by index, so that no tree is deep to destroy.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace pith {

using ExprId = uint32_t;
using BlockId = uint32_t;  // a list of statements
constexpr uint32_t kNoNode = UINT32_MAX;

struct TemplateArg {
  std::string name;  // empty: positional
  ExprId value;
};

struct TemplateExpr {
  enum Kind {
    kNone,
    kTrue,
    kFalse,
    kInteger,
    kFloat,
    kString,  // literals
    kName,    // text
    kList,
    kTuple,      // kids
    kMap,        // kids: key, value, key, value
    kAttribute,  // kids[0] . text
    kIndex,      // kids[0] [ kids[1] ]
    kSlice,      // kids[0] [ kids[1] : kids[2] : kids[3] ], each may be kNoNode
    kCall,       // kids[0] ( args )
    kMethod,     // kids[0] . text ( args )
    kFilter,
    kTest,  // kids[0] | text ( args ), kids[0] is text ( args )
    kNot,
    kNegate,
    kPlus,  // kids[0]
    kAnd,
    kOr,           // kids[0], kids[1]
    kBinary,       // text: + - * / // % ~
    kCompare,      // kids[0] op kids[1] op kids[2] ...; ops
    kConditional,  // kids[0] if kids[1] else kids[2] (may be kNoNode)
  } kind;
  uint32_t line;
  uint32_t depth = 1;  // 1 + the deepest kid's
  std::string text;
  int64_t integer = 0;
  double number = 0;
  std::vector<ExprId> kids;
  std::vector<std::string> ops;
  std::vector<TemplateArg> args;
};

struct TemplateStatement {
  enum Kind {
    kText,      // text
    kPrint,     // exprs[0]
    kIf,        // exprs[i] -> blocks[i]; one more block: else
    kFor,       // names in exprs[0] (if exprs[1] or kNoNode): blocks[0], else blocks[1] or kNoNode
    kSet,       // names = exprs[0]
    kSetField,  // names[0] . text = exprs[0]
    kSetBlock,  // names[0] = rendered blocks[0]
    kMacro,     // text ( names, the last exprs.size() with defaults ): blocks[0]
    kBreak,
    kContinue,
  } kind;
  uint32_t line;
  std::string text;
  std::vector<std::string> names;
  std::vector<ExprId> exprs;
  std::vector<BlockId> blocks;
};

struct TemplateAst {
  std::vector<TemplateExpr> exprs;
  std::vector<std::vector<TemplateStatement>> blocks;
  BlockId root = 0;
};

constexpr uint32_t kMaxTemplateDepth = 64;  // nesting of statements and of brackets
constexpr uint32_t kMaxExprDepth = 200;     // of an expression's tree: a chain of 200 "+" is fine

}  // namespace pith
